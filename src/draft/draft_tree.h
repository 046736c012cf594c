#pragma once

#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace firp {

struct DraftNode {
  Token token;
  int parent;  ///< an earlier node; kRoot: a child of the token that is already known
  int depth;   ///< 1: right behind the root
  float log_probability = 0;  ///< of the path that ends here: the sum of its candidates'
  bool from_text = false;     ///< an n-gram's continuation (draft/ngram.h) has it, too or alone
};
inline constexpr int kRoot = -1;

/// In descending order of probability: parents before children, siblings the best first, and the
/// first n nodes are the tree of n nodes.
using DraftTree = std::vector<DraftNode>;

/// What may stand at depth `step` (1 .. steps) behind each of some tokens at depth step - 1 (step
/// 1: behind the root): one list a token of `previous`, best first.
using Continuations =
    std::function<std::vector<std::vector<Candidate>>(int step, std::span<const Token> previous)>;

/// Nodes of one depth that are continued, at most: the most probable ones. More give no more
/// tokens per forward pass (docs/training.md).
inline constexpr int kBeam = 16;

/// The `nodes` most probable paths behind `root`, where a path's probability is the product of its
/// tokens' given the one before. That maximises the expected number of accepted tokens for this
/// size, as far as the probabilities are true. `continuations` is asked once a depth, and only
/// about nodes that can be in the tree.
DraftTree build_draft_tree(int steps, int nodes, Token root, const Continuations& continuations);

/// The most probable token of each depth behind the one before: one branch.
DraftTree build_draft_chain(int steps, Token root, const Continuations& continuations);

/// The same where a depth's candidates do not depend on the token before (marginals): those of
/// depth j are steps[j - 1].
DraftTree build_draft_tree(std::span<const std::vector<Candidate>> steps, int nodes);

}  // namespace firp
