#pragma once

#include <span>
#include <vector>

#include "draft/draft_tree.h"
#include "plan/calibration.h"
#include "plan/costs.h"
#include "plan/drift.h"

namespace firp {

/// What is decided for the next pass of one sequence, and what its text has taught: how far the
/// drafts' probabilities are true, and whether drafting pays. A value that its session holds, and
/// Planner alone reads and writes.
struct Plan {
  struct NextPass {
    bool drafted = false;     ///< by pseudo rows
    int steps = 0;            ///< that were drafted ahead; 0: as many as there are
    bool alone = false;       ///< nothing else was at hand
    double rate_without = 0;  ///< tokens a second that it would have had without
  };

  /// Steps that are drafted until it is known whether that pays, and the pause behind those that
  /// lost.
  struct Trial {
    int steps = 0;            ///< drafted ones since the last pause
    int pause = 0;            ///< `undrafted_run` at the next trial; 0: drafting goes on
    double lost_seconds = 0;  ///< by the last one
    /// Of plain passes behind it, before they had settled: the sum of seen / measured, and how
    /// many.
    double settling_ratios = 0;
    int settling_passes = 0;
    double plain_ratio = 1;  ///< what it was held against: the drift of plain passes
    bool was_blind = false;  ///< that was of long ago, or of another run of the program
  };

  NextPass next;
  Calibration calibration;  ///< expects the tokens of a tree
  Trial trial;
  int undrafted_run = 0;  ///< the sequence's passes, up to now, that were not drafted for
  double rate = 0;        ///< tokens a second of passes that were drafted for
  double profit = 0;      ///< by which share drafting is faster than doing without
  /// Tokens a second of passes that are drafted for so many steps ahead: [steps - 1]; of those that
  /// had nothing else at hand.
  std::vector<double> step_rates;
  int drafts = 0;  ///< passes that were drafted for
};

/// Decides at each step of a sequence how many nodes of a draft tree are verified, whether pseudo
/// rows draft, and how many steps ahead, to get the most tokens a second:
/// (1 + accepted) / T(step).
///
/// One for all sequences of an engine: what one teaches about the machine, what passes take by now,
/// helps all. What depends on a sequence's text is in its plan, so that sequences may take turns in
/// any order, and none is misled by another. `context`: positions that the sequence has committed.
class Planner {
 public:
  /// `follow`: whether times that are seen correct those of `costs`; not for a machine that is only
  /// imagined.
  explicit Planner(PassCosts costs, bool follow = true);

  /// Of a new sequence. What its text will teach is taken from the one that was observed last, so
  /// that short texts need no trial each.
  Plan begin() const { return latest_; }

  /// How many of a tree's first nodes should be verified.
  int nodes_worth_verifying(const Plan& plan, const DraftTree& tree, int context) const;

  /// What came of the planned pass: the tree that it verified, and those of its nodes that were
  /// right.
  void observe_pass(Plan& plan, const DraftTree& tree, std::span<const int> accepted,
                    double seconds, int context);

  /// Decides whether pseudo rows draft for the next pass, and how far ahead; whether they do.
  /// `at_hand` is what is drafted without them.
  bool decide(Plan& plan, const DraftTree& at_hand, int context) const;

  /// How many steps ahead, where drafting was decided on.
  int steps(const Plan& plan) const;

  /// They did.
  void observe_drafting(const Plan& plan, double seconds);

  /// The next pass is another one than was planned, and its draft is gone.
  static void forget_next(Plan& plan) { plan.next = {}; }

  /// Of the pass that comes next.
  double verify_seconds(const Plan& plan, int rows, int context) const {
    return verify_seconds(rows, context, plan.next.drafted);
  }
  /// Of as many steps as were decided on.
  double draft_seconds(const Plan& plan) const;

  const PassCosts& costs() const { return costs_; }

 private:
  double verify_seconds(int rows, int context, bool drafted) const {
    return drifts_.ratio(rows, drafted) * costs_.verify(rows, context);
  }
  double best_rate(const Plan& plan, const DraftTree& tree, int context, bool drafted,
                   double draft_seconds, int* nodes) const;
  void learn_steps(Plan& plan, const DraftTree& tree, int context) const;
  void observe_pause(Plan& plan, int rows, double seconds, int context) const;
  void observe_trial(Plan& plan, int rows, double tokens, int context) const;
  int pause_for_trial(const Plan& plan, int context) const;

  PassCosts costs_;
  Drifts drifts_;
  bool follow_;
  Plan latest_;  ///< of the sequence that was observed last, with nothing decided
};

}  // namespace firp
