#pragma once

#include <map>
#include <vector>

namespace firp {

/// Of the largest tree that is planned for.
inline constexpr int kMostPlannedNodes = 32;

/// What the time of a pass depends on.
struct PassSize {
  int rows = 0;
  double attended = 0;  ///< positions of their contexts that the rows see, all together

  void add(int more_rows, int context) {
    rows += more_rows;
    attended += static_cast<double>(more_rows) * context;
  }
  PassSize with(int more_rows, int context) const {
    PassSize all = *this;
    all.add(more_rows, context);
    return all;
  }
};

/// What passes cost on this machine.
struct PassCosts {
  /// Seconds of a verifying pass by its rows, on a short context; those between are interpolated.
  std::map<int, double> verify_seconds;
  /// Of what drafts for a pass, in passes of its own: [steps - 1], or one time for all steps. Empty
  /// where nothing drafts, or nobody measured it: then the first time is taken.
  std::vector<double> draft_seconds;
  /// What a row adds for each position of its context: attention.
  double position_seconds = 0;
  /// Whether the last-level cache may keep the model's weights from a pass to the next: then plain
  /// passes take longer after others, until the weights are back.
  bool keeps_weights = true;

  double verify(const PassSize& size) const;
  /// Of rows of one sequence.
  double verify(int rows, int context) const { return verify(PassSize().with(rows, context)); }
};

}  // namespace firp
