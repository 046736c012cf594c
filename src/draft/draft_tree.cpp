#include "draft/draft_tree.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>

namespace firp {
DraftTree build_draft_chain(int steps, Token root, const Continuations& continuations) {
  DraftTree chain;
  for (int step = 1; step <= steps; ++step) {
    const Token previous = chain.empty() ? root : chain.back().token;
    const float so_far = chain.empty() ? 0.0f : chain.back().log_probability;
    const std::vector<Candidate> candidates = continuations(step, std::span(&previous, 1)).front();
    if (candidates.empty()) break;
    chain.push_back(
        {candidates.front().token, step - 2, step, so_far + candidates.front().log_probability});
  }
  return chain;
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
