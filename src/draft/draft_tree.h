#pragma once

#include <span>
#include <vector>

#include "model/vocabulary.h"

namespace firp {

/// A token that a pseudo row proposes, and the logarithm of the probability that the row gives it.
struct Candidate {
  Token token;
  float log_probability;
};

/// The `count` most probable tokens of a row of logits, best first. NaNs are never proposed.
std::vector<Candidate> top_candidates(std::span<const float> logits, int count);

struct DraftNode {
  Token token;
  int parent;  ///< an earlier node; kRoot: a child of the token that is already known
  int depth;   ///< 1: right behind the root
};
inline constexpr int kRoot = -1;

/// Parents before children, siblings in descending order of probability.
using DraftTree = std::vector<DraftNode>;

/// The `nodes` most probable paths, where a path's probability is the product of its tokens'. The
/// candidates of depth j are steps[j - 1], whatever the path (marginals). That maximises the
/// expected number of accepted tokens for this size if the steps were independent.
DraftTree build_draft_tree(std::span<const std::vector<Candidate>> steps, int nodes);

}  // namespace firp
