#pragma once

#include <functional>
#include <string>
#include <utility>

#include "base/clock.h"
#include "train/train.h"

namespace firp {

/// Sends progress, not too often; sums the time of each phase.
class Phase {
 public:
  Phase(TrainPhase phase, double* minutes, const std::function<void(const TrainProgress&)>& send)
      : minutes_(minutes), send_(send) {
    progress_.phase = phase;
  }
  ~Phase() { *minutes_ += elapsed() / 60; }
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;

  double elapsed() const { return now_seconds() - start_; }
  TrainProgress& progress() { return progress_; }

  void update(long long done, long long total) {
    const double now = now_seconds();
    if (done < total && now - last_sent_ < kReportSeconds) {
      return;
    }
    if (first_done_ < 0) {
      first_done_ = done;
      first_done_seconds_ = now;
    }
    last_sent_ = now;
    progress_.done = done;
    progress_.total = total;
    progress_.elapsed_seconds = now - start_;
    const double rate =
        static_cast<double>(done - first_done_) / (now - first_done_seconds_ + 1e-9);
    progress_.eta_seconds = rate > 0 ? static_cast<double>(total - done) / rate : -1;
    send_(progress_);
  }

  void note(std::string text) {
    progress_.note = std::move(text);
    send_(progress_);
    progress_.note.clear();
  }

 private:
  static constexpr double kReportSeconds = 0.25;
  double* minutes_;
  const std::function<void(const TrainProgress&)>& send_;
  double start_ = now_seconds(), last_sent_ = 0;
  long long first_done_ = -1;
  double first_done_seconds_ = 0;
  TrainProgress progress_;
};

}  // namespace firp
