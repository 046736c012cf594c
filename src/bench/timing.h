#pragma once

#include <functional>
#include <vector>

#include "base/clock.h"

namespace firp {

/// Seconds of one thing, measured several times.
struct Timing {
  double best = 0;
  double median = 0;
};
Timing timing_of(std::vector<double> seconds);  ///< of one or more

/// Things that are measured in turn, again and again, so that all see the same machine: each some
/// times, and less often where it takes long.
class Samples {
 public:
  explicit Samples(std::size_t things) : seconds_(things) {}

  bool enough() const;
  /// Runs `work` and takes its time, unless there are samples enough of this thing. A first call
  /// that warms up is the caller's.
  void measure(std::size_t thing, const std::function<void()>& work);

  Timing timing(std::size_t thing) const { return timing_of(seconds_[thing]); }

 private:
  bool enough(std::size_t thing) const;
  std::vector<std::vector<double>> seconds_;
};

/// What other programs, and other guests of the same host, took of the processors since this was
/// made: above kNegligibleLoadCores the times beside it may not be this machine's best.
class OtherLoad {
 public:
  OtherLoad();
  double cores() const;  ///< on average; 0 where the system does not tell

 private:
  const Stopwatch watch_;
  const double seconds_at_start_;
};

inline constexpr double kNegligibleLoadCores = 0.05;

}  // namespace firp
