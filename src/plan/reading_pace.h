#pragma once

#include <algorithm>

namespace firp {

/// How much of a prompt is read in a pass in which others decode, and so wait for it.
class ReadingPace {
 public:
  /// Rows of prompts that such a pass may have.
  int rows() const {
    // Where a pass takes long anyway, reading must get on.
    const double bound = std::max(kMostSeconds, 2 * decoding_seconds_);
    return row_seconds_ == 0 ? kFirst : std::max(1, static_cast<int>(bound / row_seconds_));
  }

  /// A pass took `seconds`, `reading` of its rows being prompts'.
  void observe(int rows, int reading, double seconds) {
    if (reading == 0) {
      follow(decoding_seconds_, seconds);
    } else if (reading >= kLeast) {
      follow(row_seconds_, seconds / rows);
    } else {
      // Most of it may be what any pass takes. So it shows only that rows take no longer; but
      // else, after one slow pass, there would be no larger one to learn from.
      row_seconds_ = std::min(row_seconds_, seconds / rows);
    }
  }

 private:
  static constexpr double kMostSeconds = 0.1;
  static constexpr int kFirst = 32;  ///< rows, while nothing is known
  static constexpr int kLeast = 8;   ///< rows of a pass that tells what rows take
  static constexpr double kWeight = 1.0 / 4;

  static void follow(double& average, double seconds) {
    average = average == 0 ? seconds : average + kWeight * (seconds - average);
  }

  double row_seconds_ = 0, decoding_seconds_ = 0;
};

}  // namespace firp
