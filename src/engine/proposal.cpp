#include "engine/proposal.h"

#include <utility>

#include "engine/draft_head.h"

namespace firp {

Proposal::Proposal(std::vector<BestTokens> best, std::shared_ptr<DraftHead> head,
                   std::vector<float> inner)
    : best_(std::move(best)), head_(std::move(head)), inner_(std::move(inner)) {}

std::vector<std::vector<Candidate>> Proposal::behind(int step,
                                                     std::span<const Token> previous) const {
  const BestTokens& row = best_.at(step - 1);
  if (previous.empty()) return {};
  if (head_ != nullptr && !row.tokens.empty()) return head_->correct(step, row, inner_, previous);
  std::vector<Candidate> candidates;
  for (const TokenLogit& each : row.tokens) {
    candidates.push_back({each.token, each.logit - row.log_sum});
  }
  return {previous.size(), candidates};
}

}  // namespace firp
