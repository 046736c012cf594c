#pragma once

#include <array>
#include <map>
#include <span>

#include "draft/draft_tree.h"
#include "engine/engine.h"

namespace firp {

/// What passes cost on this machine.
struct PassCosts {
  /// Seconds of a verifying pass by its rows, on a short context; those between are interpolated.
  std::map<int, double> verify_seconds;
  /// Of what drafts for a pass, in passes of its own; 0 where nothing can, or nobody measured it:
  /// then the first time is taken.
  double draft_seconds = 0;
  /// What a row adds for each position of its context: attention.
  double position_seconds = 0;

  double verify(int rows, int context) const;
};

/// Measures them: some tens of forward passes.
PassCosts measure_costs(Engine& engine);

/// Decides at each step how many nodes of a draft tree are verified and whether pseudo rows draft,
/// to get the most tokens a second: (1 + accepted) / T(step). It learns from what it sees how far
/// the drafts' probabilities are true (likely nodes and unlikely ones apart), and what passes take
/// by now.
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

  /// They did.
  void observe_drafting(double seconds);

  double verify_seconds(int rows, int context) const {
    return (rows == 1 ? plain_drift_ : drift_) * costs_.verify(rows, context);
  }
  const PassCosts& costs() const { return costs_; }
  double draft_seconds() const { return costs_.draft_seconds; }
  /// Accepted nodes seen / expected, for nodes of about this probability.
  double calibration(double probability) const;

 private:
  static constexpr int kLikelihoods = 4;  ///< ranges of probability that are calibrated apart
  static int likelihood(double probability);
  double expected_tokens(const DraftNode& node) const;  ///< 0 .. 1
  double best_rate(const DraftTree& tree, int context, double draft_seconds, int* nodes) const;

  PassCosts costs_;
  bool follow_;
  /// What passes take by now / what they took when they were measured: of one row, and of more.
  double plain_drift_ = 1, drift_ = 1;
  /// Nodes of each range, by their probabilities and as they came; old ones fade.
  std::array<double, kLikelihoods> expected_, accepted_;
  bool drafted_ = false;     ///< for the pass that comes next
  double rate_without_ = 0;  ///< tokens a second that it would have had without
  double rate_ = 0;          ///< tokens a second of passes that were drafted for
  double profit_ = 0;        ///< by which share drafting is faster than doing without
  int trial_ = 0;            ///< drafted steps since the last pause
  int pause_ = 0;            ///< steps until the next trial
};

}  // namespace firp
