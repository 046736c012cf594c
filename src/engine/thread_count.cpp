#include "engine/thread_count.h"

#include <algorithm>

namespace firp {
namespace {

// Long enough that a core's short absence decides nothing, and that one of Linux's turns (some
// milliseconds) is within it.
constexpr int kWindowPasses = 4;
constexpr double kWindowSeconds = 0.025;

// A trial that fails costs about a window. The first one comes soon, since a core may have been
// gone for a moment only.
constexpr double kShortestPauseSeconds = 0.05;
constexpr double kLongestPauseSeconds = 3;

}  // namespace

void ThreadCount::observe(double seconds, double waited_seconds) {
  if (most_ == 1) return;
  ++passes_;
  seconds_ += seconds;
  waited_seconds_ += waited_seconds;
  until_trial_seconds_ -= seconds;
  if (passes_ < kWindowPasses || seconds_ < kWindowSeconds) return;

  // While one thread lacks its core the others wait, and nothing is done: that share of the time is
  // lost for all. With a thread fewer, and a core for each, one thread's work is lost.
  const double lost_share = now_ > 1 ? waited_seconds_ / seconds_ / (now_ - 1) : 0;
  begin_window();
  const bool loses = lost_share * now_ > 1;
  // Once is nothing: as passes begin, Linux may have two threads on a core for some milliseconds.
  const bool believed = tries_ || lost_before_;
  lost_before_ = loses;
  if (loses && believed) {
    pause_seconds_ =
        tries_ ? std::min(2 * pause_seconds_, kLongestPauseSeconds) : kShortestPauseSeconds;
    until_trial_seconds_ = pause_seconds_;
    tries_ = lost_before_ = false;
    --now_;
  } else if (now_ < most_ && until_trial_seconds_ <= 0) {
    tries_ = true;
    ++now_;
  } else {
    tries_ = false;
  }
}

}  // namespace firp
