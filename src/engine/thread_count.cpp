#include "engine/thread_count.h"

#include <algorithm>

namespace firp {
namespace {

constexpr double kWindowSeconds = 0.03;  // some time slices of the system's scheduler
constexpr double kFirstWaitSeconds = 0.25;
constexpr double kMostWaitSeconds = 4;

/// The part of the time that threads may lack their cores before one of them is one too many. Two
/// threads are 1.5 times as fast as one, not twice: memory serves both.
double bearable(int threads) { return 0.02 + 0.6 / threads; }

}  // namespace

void ThreadCount::observe(double now, double seconds, double lost_seconds) {
  window_seconds_ += seconds;
  window_lost_seconds_ += lost_seconds;
  if (window_seconds_ < kWindowSeconds) return;
  const bool too_many = threads_ > 1 && window_lost_seconds_ > bearable(threads_) * window_seconds_;
  window_seconds_ = window_lost_seconds_ = 0;
  if (too_many) {
    --threads_;
    wait_seconds_ = trying_ ? std::min(2 * wait_seconds_, kMostWaitSeconds) : kFirstWaitSeconds;
    next_try_ = now + wait_seconds_;
    trying_ = false;
  } else if (threads_ < most_ && now >= next_try_) {
    ++threads_;
    trying_ = true;
  } else {
    trying_ = false;
  }
}

}  // namespace firp
