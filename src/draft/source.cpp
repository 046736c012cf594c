#include "draft/source.h"

#include <algorithm>

namespace firp {

void DraftSource::add_rows(std::vector<Row>& /*rows*/, std::span<const Token> /*tokens*/) {}

std::vector<Candidate> best_candidates(Engine& engine, int row, int count) {
  const BestTokens& best = engine.best_tokens(std::span(&row, 1), count, /*log_sums=*/true).front();
  std::vector<Candidate> candidates;
  for (const TokenLogit& each : best.tokens) {
    candidates.push_back({each.token, each.logit - best.log_sum});
  }
  return candidates;
}

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

}  // namespace firp
