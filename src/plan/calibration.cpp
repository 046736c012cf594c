#include "plan/calibration.h"

#include <algorithm>
#include <cmath>

namespace firp {
namespace {

constexpr double kHalfLifePasses = 64;  ///< what lies so many passes back counts half

double probability_of(const DraftNode& node) { return std::exp(double{node.log_probability}); }

int likelihood_of(const DraftNode& node) {
  const double probability = probability_of(node);
  return probability > 0.6 ? 0 : probability > 0.3 ? 1 : probability > 0.1 ? 2 : 3;
}

}  // namespace

void Calibration::Tokens::fade() {
  static const double kFade = std::exp2(-1 / kHalfLifePasses);
  expected = kPriorTokens + kFade * (expected - kPriorTokens);
  accepted = kPriorTokens + kFade * (accepted - kPriorTokens);
}

double Calibration::ratio(const DraftNode& node) const {
  const Source& source = sources_[node.from_text];
  return source.likelihoods[likelihood_of(node)].ratio() *
         source.depths[std::min(node.depth, kDepths) - 1].ratio();
}

double Calibration::expected_tokens(const DraftNode& node) const {
  return ratio(node) * probability_of(node);
}

double Calibration::expected_tokens(const DraftTree& tree) const {
  double tokens = 1;
  for (const DraftNode& node : tree) tokens += expected_tokens(node);
  return tokens;
}

void Calibration::observe(const DraftTree& tree, std::span<const int> accepted) {
  if (tree.empty()) return;
  // Each of the two ratios is to explain what the other one does not.
  const std::array<Source, 2> before = sources_;
  for (Source& source : sources_) {
    for (Tokens& tokens : source.likelihoods) tokens.fade();
    for (Tokens& tokens : source.depths) tokens.fade();
  }
  for (const DraftNode& node : tree) {
    const int likelihood = likelihood_of(node), depth = std::min(node.depth, kDepths) - 1;
    const Source& known = before[node.from_text];
    Source& source = sources_[node.from_text];
    source.likelihoods[likelihood].expected += probability_of(node) * known.depths[depth].ratio();
    source.depths[depth].expected += probability_of(node) * known.likelihoods[likelihood].ratio();
  }
  for (const int index : accepted) {
    const DraftNode& node = tree[index];
    Source& source = sources_[node.from_text];
    source.likelihoods[likelihood_of(node)].accepted += 1;
    source.depths[std::min(node.depth, kDepths) - 1].accepted += 1;
  }
}

}  // namespace firp
