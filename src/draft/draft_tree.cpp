#include "draft/draft_tree.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>

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

DraftTree build_draft_tree(int steps, int nodes, Token root, const Continuations& continuations) {
  // All paths found so far, the best `nodes` of them, best first. A path is never more probable
  // than its beginning, so what falls out of here could not have come back, nor anything behind it.
  DraftTree tree;
  std::vector<int> parents = {kRoot};  // of the depth that comes next
  for (int depth = 1; depth <= steps && !parents.empty() && nodes > 0; ++depth) {
    std::vector<Token> previous;
    for (const int parent : parents)
      previous.push_back(parent == kRoot ? root : tree[parent].token);
    const std::vector<std::vector<Candidate>> candidates = continuations(depth, previous);
    const std::size_t before = tree.size();
    for (std::size_t i = 0; i < parents.size(); ++i) {
      const float so_far = parents[i] == kRoot ? 0.0f : tree[parents[i]].log_probability;
      for (const Candidate& candidate : candidates[i]) {
        tree.push_back({candidate.token, parents[i], depth,
                        so_far + std::min(0.0f, candidate.log_probability)});
      }
    }
    if (tree.size() == before) break;

    // Of equals, the shallower path and the earlier candidate stay in front.
    std::vector<int> order(tree.size());
    std::iota(order.begin(), order.end(), 0);
    const std::size_t count = std::min(order.size(), static_cast<std::size_t>(nodes));
    std::ranges::partial_sort(order, order.begin() + static_cast<std::ptrdiff_t>(count),
                              [&](int a, int b) {
                                const float left = tree[a].log_probability;
                                const float right = tree[b].log_probability;
                                return left > right || (left == right && a < b);
                              });
    order.resize(count);
    std::vector<int> place(tree.size(), kRoot);
    DraftTree kept;
    parents.clear();
    for (const int old : order) {
      place[old] = static_cast<int>(kept.size());
      DraftNode node = tree[old];
      if (node.parent != kRoot) node.parent = place[node.parent];
      if (node.depth == depth && std::ssize(parents) < kBeam) parents.push_back(place[old]);
      kept.push_back(node);
    }
    tree = std::move(kept);
  }
  return tree;
}

DraftTree build_draft_tree(std::span<const std::vector<Candidate>> steps, int nodes) {
  return build_draft_tree(static_cast<int>(steps.size()), nodes, /*root=*/0,
                          [&](int step, std::span<const Token> previous) {
                            return std::vector(previous.size(), steps[step - 1]);
                          });
}

}  // namespace firp
