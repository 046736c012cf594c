#include "draft/draft_tree.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <queue>

namespace firp {
namespace {

/// exp(x) for x <= 0 to about 1e-4: enough to rank drafts, and a loop that compilers vectorise.
inline float rough_exp(float x) {
  const float t = std::max(-80.0f, x) * 1.44269504f;
  const float whole = static_cast<float>(static_cast<std::int32_t>(t - 0.5f));
  const float f = t - whole;  // -0.5 .. 0.5
  const float power =
      1.0f + f * (0.69314718f + f * (0.24022651f + f * (0.05550411f + f * 0.00961813f)));
  const std::int32_t exponent = (static_cast<std::int32_t>(whole) + 127) << 23;
  return power * std::bit_cast<float>(exponent);
}

}  // namespace

std::vector<Candidate> top_candidates(std::span<const float> logits, int count) {
  // A heap whose top is the worst of the best: later tokens rarely pass it.
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.log_probability > b.log_probability ||
           (a.log_probability == b.log_probability && a.token < b.token);
  };
  std::vector<Candidate> best;
  best.reserve(static_cast<std::size_t>(count) + 1);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const bool full = best.size() == static_cast<std::size_t>(count);
    if (full && !(logits[i] > best.front().log_probability)) continue;
    if (std::isnan(logits[i])) continue;
    best.push_back({static_cast<Token>(i), logits[i]});
    std::ranges::push_heap(best, better);
    if (full) {
      std::ranges::pop_heap(best, better);
      best.pop_back();
    }
  }
  std::ranges::sort_heap(best, better);
  if (best.empty()) return best;

  const float maximum = best.front().log_probability;
  float sums[16] = {};
  std::size_t i = 0;
  for (; i + 16 <= logits.size(); i += 16) {
    for (std::size_t lane = 0; lane < 16; ++lane) {
      sums[lane] += rough_exp(logits[i + lane] - maximum);
    }
  }
  float sum = 0;
  for (; i < logits.size(); ++i) sum += rough_exp(logits[i] - maximum);
  for (const float lane : sums) sum += lane;
  const float log_sum = maximum + std::log(sum);
  for (Candidate& candidate : best) candidate.log_probability -= log_sum;
  return best;
}

DraftTree build_draft_tree(std::span<const std::vector<Candidate>> steps, int nodes) {
  struct Path {
    float log_probability;
    int parent;
    int depth;
    int rank;
    int order;  // breaks ties, so that the tree is a function of its input
  };
  const auto worse = [](const Path& a, const Path& b) {
    return a.log_probability < b.log_probability ||
           (a.log_probability == b.log_probability && a.order > b.order);
  };
  std::priority_queue<Path, std::vector<Path>, decltype(worse)> open(worse);
  int order = 0;
  const auto push = [&](float parent_log_probability, int parent, int depth, int rank) {
    if (depth > static_cast<int>(steps.size())) return;
    const std::vector<Candidate>& candidates = steps[depth - 1];
    if (rank >= static_cast<int>(candidates.size())) return;
    open.push(
        {parent_log_probability + candidates[rank].log_probability, parent, depth, rank, order++});
  };

  DraftTree tree;
  push(0.0f, kRoot, 1, 0);
  while (static_cast<int>(tree.size()) < nodes && !open.empty()) {
    const Path path = open.top();
    open.pop();
    const Candidate& candidate = steps[path.depth - 1][path.rank];
    const int node = static_cast<int>(tree.size());
    tree.push_back({candidate.token, path.parent, path.depth});
    push(path.log_probability - candidate.log_probability, path.parent, path.depth, path.rank + 1);
    push(path.log_probability, node, path.depth + 1, 0);
  }
  return tree;
}

}  // namespace firp
