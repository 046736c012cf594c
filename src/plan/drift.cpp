#include "plan/drift.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace firp {

/// What was not seen for long counts for more. A pass tells something of those with about as many
/// rows, but a plain one nothing of others: the model's memory alone decides what that takes.
void Drift::observe(int rows, double ratio_now) {
  rows = std::min(rows, kMostRows);
  const double change = std::clamp(ratio_now / ratios_[rows], 0.5, 2.0) - 1;
  for (int other = 1; other < std::ssize(ratios_); ++other) {
    if (other != rows && (other == 1 || rows == 1)) continue;
    const double quotient = static_cast<double>(std::min(rows, other)) / std::max(rows, other);
    const double nearness = quotient * quotient;
    ratios_[other] *= 1 + nearness * std::min((unseen_[other] + 1) * kAverageWeight, 0.5) * change;
    unseen_[other] *= 1 - nearness;
  }
}

void Drifts::observe(int rows, bool drafted, bool plain, double ratio) {
  for (Drift& drift : drifts_) drift.pass();
  undrafted_run_ = drafted ? 0 : undrafted_run_ + 1;
  until_plain_ = std::max(0, until_plain_ - 1);
  plain_unseen_ = std::min(plain_unseen_ + 1, kSoon);
  if (undrafted_run_ <= settling_) run_ratio_ = drifts_[false].ratio(rows);
  if (!follow_ || (!drafted && undrafted_run_ <= settling_)) return;
  drifts_[drafted].observe(rows, ratio);
  if (drafted || !plain) return;
  plain_unseen_ = 0;
  if (undrafted_run_ < settling_ + kSeen) return;
  const double change = drifts_[false].ratio(rows) / run_ratio_ - 1;
  const bool known = std::abs(change) < kExpectedShare || undrafted_run_ > kSoon;
  until_plain_ = known ? kLongestWithoutPlain : kSoon;
}

}  // namespace firp
