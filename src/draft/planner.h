#pragma once

#include <array>
#include <map>
#include <span>
#include <vector>

#include "draft/draft_tree.h"
#include "engine/engine.h"

namespace firp {

/// What passes cost on this machine.
struct PassCosts {
  /// Seconds of a verifying pass by its rows, on a short context; those between are interpolated.
  std::map<int, double> verify_seconds;
  /// Of what drafts for a pass, in passes of its own: [steps - 1], or one time for all steps. Empty
  /// where nothing drafts, or nobody measured it: then the first time is taken.
  std::vector<double> draft_seconds;
  /// What a row adds for each position of its context: attention.
  double position_seconds = 0;

  double verify(int rows, int context) const;
};

/// Measures them: some tens of forward passes.
PassCosts measure_costs(Engine& engine);

/// Decides at each step how many nodes of a draft tree are verified, whether pseudo rows draft, and
/// how many steps ahead, to get the most tokens a second: (1 + accepted) / T(step). It learns from
/// what it sees how far the drafts' probabilities are true (likely nodes and unlikely ones apart,
/// those of the text and of the method, too), and what passes take by now.
///
/// One for all sequences of an engine; what one has taught helps the next. `context`: positions
/// that the sequence has committed.
class Planner {
 public:
  static constexpr int kMostNodes = 32;

  /// `follow`: whether times that are seen correct those of `costs`; not for a machine that is only
  /// imagined.
  explicit Planner(PassCosts costs, bool follow = true);

  /// How many of a tree's first nodes should be verified.
  int nodes_worth_verifying(const DraftTree& tree, int context) const;

  /// Tokens that a pass which verifies `tree` should give.
  double expected_tokens(const DraftTree& tree) const;

  /// What came of a pass: the tree that it verified, and those of its nodes that were right.
  void observe_pass(const DraftTree& tree, std::span<const int> accepted, double seconds,
                    int context);

  /// Whether pseudo rows should draft for the next pass; `at_hand` is what is drafted without them.
  bool drafts(const DraftTree& at_hand, int context);

  /// How many steps ahead, once drafts() said so.
  int steps() const;

  /// They did.
  void observe_drafting(double seconds);

  /// Of the pass that comes next.
  double verify_seconds(int rows, int context) const {
    return verify_seconds(rows, context, drafted_);
  }
  const PassCosts& costs() const { return costs_; }
  /// Of as many steps as drafts() chose.
  double draft_seconds() const;
  /// Accepted nodes seen / expected, for nodes of about this probability, and of this source.
  double calibration(double probability, bool from_text = false) const;

 private:
  /// Ranges of probability that are calibrated apart, for each of two sources.
  static constexpr int kRanges = 2 * 4;
  static int range_of(double probability, bool from_text);
  static int range_of(const DraftNode& node);
  double expected_tokens(const DraftNode& node) const;  ///< 0 .. 1
  double verify_seconds(int rows, int context, bool drafted) const {
    return drifts_[drafted].ratio(rows) * costs_.verify(rows, context);
  }
  double best_rate(const DraftTree& tree, int context, bool drafted, double draft_seconds,
                   int* nodes) const;
  void learn_steps(const DraftTree& tree, int context);
  int best_steps() const;
  int pause_for_trial(int context) const;

  /// What passes take by now / what they took when they were measured, by their rows: when memory
  /// is slow, say, those of few rows take longer, and those of many what they took.
  class Drift {
   public:
    Drift() { ratios_.fill(1); }
    double ratio(int rows) const { return ratios_[rows]; }
    void pass() {
      for (double& passes : unseen_) ++passes;
    }
    void observe(int rows, double ratio_now);

   private:
    std::array<double, kMostNodes + 2> ratios_;
    std::array<double, kMostNodes + 2> unseen_{};  ///< passes since one of about as many rows
  };

  PassCosts costs_;
  bool follow_;
  /// Of passes that pseudo rows did not draft for, and of those that they did.
  std::array<Drift, 2> drifts_;
  int undrafted_run_ = 0;  ///< passes, up to now, that pseudo rows did not draft for
  int until_plain_ = 0;    ///< passes until a run of plain ones is due
  int plain_unseen_;       ///< passes since a plain one was seen that had settled
  double run_ratio_ = 1;   ///< the drift of plain passes when those of this run had settled
  /// Nodes of each range, by their probabilities and as they came; old ones fade.
  std::array<double, kRanges> expected_, accepted_;
  bool drafted_ = false;     ///< for the pass that comes next
  double rate_without_ = 0;  ///< tokens a second that it would have had without
  double rate_ = 0;          ///< tokens a second of passes that were drafted for
  double profit_ = 0;        ///< by which share drafting is faster than doing without
  /// Tokens a second of passes that are drafted for so many steps ahead: [steps - 1]; of those that
  /// had nothing else at hand.
  std::vector<double> step_rates_;
  int steps_ = 0;            ///< for the pass that comes next; 0: as many as there are
  bool alone_ = false;       ///< nothing else was at hand
  int drafts_ = 0;           ///< passes that were drafted for
  int trial_ = 0;            ///< drafted steps since the last pause
  int pause_ = 0;            ///< undrafted_run_ at the next trial; 0: drafting goes on
  double lost_seconds_ = 0;  ///< by the last one
  /// Of plain passes behind it, before they had settled: the sum of seen / measured, and how many.
  double settling_ratios_ = 0;
  int settling_passes_ = 0;
  double trial_plain_ratio_ = 1;  ///< what it was held against: the drift of plain passes
  bool trial_was_blind_ = false;  ///< that was of long ago, or of another run of the program
};

}  // namespace firp
