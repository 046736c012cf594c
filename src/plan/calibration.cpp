#include "plan/calibration.h"

#include <cmath>

namespace firp {
namespace {

// What lies so many passes back counts half, and all begins as if so many tokens had been expected
// and had come.
constexpr double kHalfLifePasses = 64;
constexpr double kPriorTokens = 2;

double probability_of(const DraftNode& node) { return std::exp(double{node.log_probability}); }

}  // namespace

Calibration::Calibration() {
  expected_.fill(kPriorTokens);
  accepted_.fill(kPriorTokens);
}

int Calibration::range_of(double probability, bool from_text) {
  const int likelihood = probability > 0.6 ? 0 : probability > 0.3 ? 1 : probability > 0.1 ? 2 : 3;
  return likelihood + (from_text ? kRanges / 2 : 0);
}

double Calibration::ratio(double probability, bool from_text) const {
  const int range = range_of(probability, from_text);
  return accepted_[range] / expected_[range];
}

double Calibration::expected_tokens(const DraftNode& node) const {
  return ratio(probability_of(node), node.from_text) * probability_of(node);
}

double Calibration::expected_tokens(const DraftTree& tree) const {
  double tokens = 1;
  for (const DraftNode& node : tree) tokens += expected_tokens(node);
  return tokens;
}

void Calibration::observe(const DraftTree& tree, std::span<const int> accepted) {
  if (tree.empty()) return;
  static const double kFade = std::exp2(-1 / kHalfLifePasses);
  for (int range = 0; range < kRanges; ++range) {
    expected_[range] = kPriorTokens + kFade * (expected_[range] - kPriorTokens);
    accepted_[range] = kPriorTokens + kFade * (accepted_[range] - kPriorTokens);
  }
  for (const DraftNode& node : tree) {
    expected_[range_of(probability_of(node), node.from_text)] += probability_of(node);
  }
  for (const int index : accepted) {
    const DraftNode& node = tree[index];
    accepted_[range_of(probability_of(node), node.from_text)] += 1;
  }
}

}  // namespace firp
