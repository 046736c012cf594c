#pragma once

#include <functional>
#include <span>
#include <vector>

#include "draft/draft_tree.h"
#include "train/maps.h"
#include "train/teacher.h"
#include "train/train.h"
#include "train/upper_layers.h"

namespace firp {

/// What the pseudo rows of one text propose.
struct TextDrafts {
  /// [anchor - first_anchor][step - 1]: the row's own candidates, best first.
  std::vector<std::vector<std::vector<Candidate>>> candidates;
  /// Only where the maps have a sequential head, for its continuations:
  torch::Tensor ids;     ///< [anchors, K, kRankedCandidates] int64: the same candidates
  torch::Tensor logits;  ///< the same shape
  torch::Tensor inner;   ///< [anchors, K, r]: state n + bias
};

/// Runs the pseudo rows of every anchor of a text. `hidden` is h^t at the maps' layer, from the
/// first anchor on. Only tokens of `draft_vocabulary` are proposed; all where it is empty.
TextDrafts draft_text(const UpperLayers& upper, const Maps& maps, const TeacherText& text,
                      const torch::Tensor& hidden,
                      std::span<const std::int32_t> draft_vocabulary = {});

/// What the sequential head proposes at an anchor (index from the text's first): the row's
/// candidates ranked anew behind each token, and sharing its probability of them. All arguments
/// must outlive the result.
Continuations continuations(const UpperLayers& upper, const Maps& maps, const TextDrafts& drafts,
                            int anchor);

/// The tree of an anchor (index from the text's first), for the root that follows it.
using TreeOf = std::function<DraftTree(int anchor, Token root)>;

/// Decoding as it would run on this text: from the anchor at the answer's begin, each pass accepts
/// the longest path of the draft tree that the text takes, and gives one more token. Adds to
/// `passes` and `tokens`.
void replay(const TeacherText& text, const TreeOf& tree_of, long long& passes, long long& tokens);

/// The trees that drafts make: `nodes` drafted tokens a pass; 0: a chain of K.
TreeOf trees_of_rows(const TextDrafts& drafts, int nodes);
TreeOf trees_of_sequence(const UpperLayers& upper, const Maps& maps, const TextDrafts& drafts,
                         int nodes);

/// Agreement over all anchors of the texts; tokens per forward pass by replay on the greedy ones (0
/// where none is). `hidden_of` gives each text's h^t at the maps' layer. `on_text` is called after
/// each text; false ends the evaluation early.
Evaluation evaluate(
    const UpperLayers& upper, const Maps& maps, std::span<const TeacherText> texts,
    const std::function<const torch::Tensor&(const TeacherText&)>& hidden_of,
    std::span<const std::int32_t> draft_vocabulary = {},
    const std::function<bool(int)>& on_text = [](int) { return true; });

}  // namespace firp
