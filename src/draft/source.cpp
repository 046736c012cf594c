#include "draft/source.h"

#include <algorithm>

namespace firp {
namespace {

constexpr int kCandidates = 8;  // of each step of a path

/// Candidates for the token behind the last row of a pass, by the model's own head.
std::vector<Candidate> best_candidates(const Pass& pass, int count) {
  const int row = pass.rows() - 1;
  const BestTokens& best = pass.best_tokens(std::span(&row, 1), count, /*log_sums=*/true).front();
  std::vector<Candidate> candidates;
  for (const TokenLogit& each : best.tokens) {
    candidates.push_back({each.token, each.logit - best.log_sum});
  }
  return candidates;
}

}  // namespace

DraftTree tree_around_path(std::span<const std::vector<Candidate>> candidates,
                           const DraftPoint& point) {
  // All nodes of a depth hang on the path's token before, so that a token stands there once.
  const Continuations behind = [&](int step, std::span<const Token> previous) {
    std::vector<std::vector<Candidate>> lists;
    for (const Token token : previous) {
      const bool on_path = step == 1 || token == candidates[step - 2].front().token;
      lists.push_back(on_path ? candidates[step - 1] : std::vector<Candidate>());
    }
    return lists;
  };
  const int steps = static_cast<int>(candidates.size());
  return point.chain ? build_draft_chain(steps, point.tokens.back(), behind)
                     : build_draft_tree(steps, point.most_nodes, point.tokens.back(), behind);
}

DraftTree draft_token_by_token(const Engine& drafter, int steps, const DraftPoint& point,
                               const std::function<Pass(std::span<const Token> path)>& run) {
  const int room = drafter.options().context - static_cast<int>(point.tokens.size());
  steps = std::min({steps, room, point.most_nodes});
  std::vector<Token> path = {point.tokens.back()};
  std::vector<std::vector<Candidate>> candidates;
  while (static_cast<int>(candidates.size()) < steps) {
    candidates.push_back(best_candidates(run(path), point.chain ? 1 : kCandidates));
    path.push_back(candidates.back().front().token);
  }
  return tree_around_path(candidates, point);
}

}  // namespace firp
