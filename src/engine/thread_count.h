#pragma once

namespace firp {

/// How many threads passes run on: as many as help. Where another program takes a core, the thread
/// that had it keeps all others waiting, and with one thread fewer the passes are faster. What is
/// seen of the passes decides; now and then one thread more is tried.
class ThreadCount {
 public:
  /// Begins with `most`.
  explicit ThreadCount(int most) : most_(most), now_(most) {}

  int now() const { return now_; }

  /// A pass on now() threads took `seconds`. `waited_seconds`: of all its threads together, waiting
  /// for one that did not go on.
  void observe(double seconds, double waited_seconds);

 private:
  void begin_window() { passes_ = 0, seconds_ = waited_seconds_ = 0; }

  int most_;
  int now_;
  // What is decided on: the passes since the last decision.
  int passes_ = 0;
  double seconds_ = 0;
  double waited_seconds_ = 0;
  bool lost_before_ = false;  ///< whether the passes before these were too slow
  bool tries_ = false;        ///< whether these try one thread more
  double pause_seconds_ = 0;  ///< of passes, from a trial that failed to the next one
  double until_trial_seconds_ = 0;
};

}  // namespace firp
