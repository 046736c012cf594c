#pragma once

#include <chrono>

namespace firp {

/// By a clock that nobody sets; its zero means nothing.
inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Time since it was made.
class Stopwatch {
 public:
  double seconds() const { return now_seconds() - start_; }

 private:
  double start_ = now_seconds();
};

}  // namespace firp
