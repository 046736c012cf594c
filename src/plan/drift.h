#pragma once

#include <algorithm>
#include <array>

#include "plan/costs.h"

namespace firp {

/// Averages are over about this many steps, those of times over half as many: short enough to
/// follow a change of subject.
inline constexpr double kAverageWeight = 1.0 / 16;

/// What passes take by now / what they took when they were measured, by their rows: when memory is
/// slow, say, those of few rows take longer, and those of many what they took.
class Drift {
 public:
  Drift() { ratios_.fill(1); }
  double ratio(int rows) const { return ratios_[std::min<std::size_t>(rows, kMostRows)]; }
  /// A pass, of whatever kind, was run.
  void pass() {
    for (double& passes : unseen_) ++passes;
  }
  void observe(int rows, double ratio_now);

 private:
  static constexpr int kMostRows = 2 * kMostPlannedNodes;  ///< that are told apart

  std::array<double, kMostRows + 1> ratios_;
  std::array<double, kMostRows + 1> unseen_{};  ///< passes since one of about as many rows
};

/// The drifts of passes that pseudo rows did not draft for, and of those that they did.
///
/// Passes of one kind disturb those of another: after drafting, a plain pass of a small model on a
/// Xeon takes 4.4 ms where it takes 3.3 among its like, and it is over ten passes until the weights
/// are back in the cache. So only plain passes that have settled tell what plain ones take. Where
/// no cache holds the weights, all have. It is the machine's last passes that matter, whichever
/// sequences they were of.
class Drifts {
 public:
  /// Passes after drafting that have not settled.
  static constexpr int settling(const PassCosts& costs) { return costs.keeps_weights ? 16 : 0; }
  /// Where nothing was seen of settled plain passes for long, they are made until so many were.
  static constexpr int kSeen = 4;
  /// How far times must differ from the expected ones to be another moment's, and no noise.
  static constexpr double kExpectedShare = 0.1;

  /// `follow`: whether the times that are seen count; not for a machine that is only imagined.
  Drifts(const PassCosts& costs, bool follow) : settling_(settling(costs)), follow_(follow) {}

  double ratio(int rows, bool drafted) const { return drifts_[drafted].ratio(rows); }
  /// A pass took `ratio` of what was measured for its rows. `plain`: it verified no drafts.
  void observe(int rows, bool drafted, bool plain, double ratio);

  /// Whether nothing should be drafted, so that plain passes are seen.
  bool plain_is_due() const { return follow_ && until_plain_ == 0; }
  /// Whether no settled plain pass was seen lately.
  bool plain_is_unseen() const { return plain_unseen_ >= kSoon; }
  /// Passes, up to now, that pseudo rows did not draft for.
  int undrafted_run() const { return undrafted_run_; }

 private:
  // Runs of plain passes cost some hundredths of the gain; without them, passes that were measured
  // in a bad moment would make drafting look good forever. At first, and where they took another
  // time than expected, the next ones come soon.
  static constexpr int kSoon = 64;
  static constexpr int kLongestWithoutPlain = 512;

  int settling_;
  bool follow_;
  std::array<Drift, 2> drifts_;  ///< [drafted]
  int undrafted_run_ = 0;
  int until_plain_ = kSoon;   ///< passes until a run of plain ones is due
  int plain_unseen_ = kSoon;  ///< passes since a plain one was seen that had settled
  double run_ratio_ = 1;      ///< the drift of plain passes when those of this run had settled
};

}  // namespace firp
