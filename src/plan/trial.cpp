#include "plan/trial.h"

#include <algorithm>

#include "plan/drift.h"

namespace firp {
namespace {

constexpr int kTrialSteps = 3;
constexpr double kTrialShare = 0.01;  // of the time, that trials lose
constexpr int kLongestPause = 256;

/// Passes after a trial until enough were seen that have settled.
int settled(const PlainPasses& plain) { return plain.settling + Drifts::kSeen; }

}  // namespace

void Trial::join() {
  if (pause_ > 0 && 2 * undrafted_run_ >= pause_) pause_ = steps_ = 0;
}

void Trial::observe_drafted(double profit, double seconds, const PlainPasses& plain) {
  undrafted_run_ = 0;
  profit_ += std::max(kAverageWeight, 1.0 / ++steps_) * (profit - profit_);
  if (steps_ < kTrialSteps || profit_ >= 0) return;
  plain_drift_ = plain.drift;
  was_blind_ = plain.drift_is_old;
  lost_seconds_ = kTrialSteps * seconds * -profit_;
  settling_ratios_ = settling_passes_ = 0;
  pause_ = pause_for(plain);
}

void Trial::observe_undrafted(bool settles, double ratio, const PlainPasses& plain) {
  ++undrafted_run_;
  if (pause_ == 0) return;
  // Where others drafted meanwhile, it is not this trial that plain passes have to settle from.
  if (settles && undrafted_run_ <= std::min(plain.settling, plain.run)) {
    settling_ratios_ += ratio;
    ++settling_passes_;
  }
  // Later passes are of another moment: they say nothing of how those took longer.
  if (undrafted_run_ <= settled(plain)) pause_ = pause_for(plain);
  // Held against a time that has turned out to be too short, the trial may have paid after all.
  // Where that time had been seen just before, most of such a change is noise.
  const double enough = was_blind_ ? 1 : 1 + Drifts::kExpectedShare;
  const bool paid =
      undrafted_run_ >= settled(plain) && (1 + profit_) * plain.drift / plain_drift_ > enough;
  if (paid || undrafted_run_ >= pause_) pause_ = steps_ = 0;
}

/// Passes from the last trial to the next, by what it lost, and the passes behind it until they had
/// settled.
int Trial::pause_for(const PlainPasses& plain) const {
  const double unsettled = settling_ratios_ - settling_passes_ * plain.drift;
  const double lost = lost_seconds_ + std::max(0.0, unsettled) * plain.measured_seconds;
  // The share is that of the trials of all sequences.
  const double share = kTrialShare / plain.sequences;
  const double passes = lost / (share * plain.drift * plain.measured_seconds);
  return static_cast<int>(std::clamp<double>(passes, settled(plain), kLongestPause));
}

}  // namespace firp
