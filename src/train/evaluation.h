#pragma once

#include <functional>
#include <span>
#include <vector>

#include "draft/draft_tree.h"
#include "train/maps.h"
#include "train/teacher.h"
#include "train/upper_layers.h"

namespace firp {

/// What the pseudo rows of one text propose: [anchor - first_anchor][step - 1], best first.
using TextDrafts = std::vector<std::vector<std::vector<Candidate>>>;

struct Evaluation {
  std::vector<float> top1, top5;  ///< agreement of each step with the model's own token, 0..1
  float chain = 0;                ///< tokens per forward pass, a chain of K
  float tree8 = 0, tree16 = 0, tree32 = 0;
};

/// Runs the pseudo rows of every anchor of a text. `hidden` is h^t at the maps' layer, from the
/// first anchor on.
TextDrafts draft_text(const UpperLayers& upper, const Maps& maps, const TeacherText& text,
                      const torch::Tensor& hidden);

/// Decoding as it would run on this text: from the anchor at the answer's begin, each pass accepts
/// the longest path of the draft tree that the text takes, and gives one more token. Adds to
/// `passes` and `tokens`. `nodes` drafted tokens a pass; 0: a chain of K.
void replay(const TeacherText& text, const TextDrafts& drafts, int nodes, long long& passes,
            long long& tokens);

/// Agreement over all anchors of the texts; tokens per forward pass by replay on the greedy ones (0
/// where none is). `hidden_of` gives each text's h^t at the maps' layer. `on_text` is called after
/// each text; false ends the evaluation early.
Evaluation evaluate(
    const UpperLayers& upper, const Maps& maps, std::span<const TeacherText> texts,
    const std::function<const torch::Tensor&(const TeacherText&)>& hidden_of,
    const std::function<bool(int)>& on_text = [](int) { return true; });

}  // namespace firp
