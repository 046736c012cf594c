#pragma once

namespace firp {

/// How many threads help while other programs want the cores too. Where one thread of a pass has no
/// core all others wait for it, so with k threads it costs a k-th of the speed, or less, to go
/// without one, and more to keep it once another program takes its core for longer than that.
///
/// The time that threads were ready to run and had no core is added up over windows; too much of it
/// takes one thread away. More are tried again later, the more rarely the more often it failed.
class ThreadCount {
 public:
  explicit ThreadCount(int most) : most_(most), threads_(most) {}

  int threads() const { return threads_; }

  /// A run with threads() threads took `seconds` and ended at `now`. lost_seconds: the sum over its
  /// threads of the time that they were ready and had no core.
  void observe(double now, double seconds, double lost_seconds);

 private:
  int most_;
  int threads_;
  double window_seconds_ = 0, window_lost_seconds_ = 0;
  bool trying_ = false;  ///< the window is the first one with a thread more
  double next_try_ = 0;
  double wait_seconds_ = 0;  ///< from one try to the next
};

}  // namespace firp
