#pragma once

#include <map>

#include "draft/draft_tree.h"
#include "engine/engine.h"

namespace firp {

/// Decides at each step how many nodes of a draft tree are verified and whether pseudo rows draft,
/// to get the most tokens a second (DESIGN: (1 + accepted) / T(step)). It knows what passes cost on
/// this machine, and learns from what it sees how far the drafts' probabilities are true.
///
/// One for all sequences of an engine; what one has learnt helps the next.
class Planner {
 public:
  static constexpr int kMostNodes = 32;

  /// Measures the passes of `engine`: some tens of forward passes.
  explicit Planner(Engine& engine);
  /// For tests and simulations. `verify_seconds`: by rows, those between are interpolated;
  /// `draft_seconds`: of a drafting pass with all that belongs to it.
  Planner(std::map<int, double> verify_seconds, double draft_seconds);

  /// Whether pseudo rows should draft for the next pass; `at_hand` is what is drafted without them.
  bool drafts(const DraftTree& at_hand) const;

  /// How many of a tree's first nodes should be verified.
  int nodes_worth_verifying(const DraftTree& tree) const;

  /// What came of a step that verified `nodes` nodes. `expected`: the sum of the verified nodes'
  /// probabilities; `drafted`: whether it ended with drafting; seconds of both.
  void observe(int nodes, double expected, int accepted, double verify_seconds, bool drafted,
               double draft_seconds);

  double verify_seconds(int rows) const;  ///< as it is expected now
  double draft_seconds() const { return draft_seconds_; }
  double calibration() const { return calibration_; }  ///< accepted nodes seen / expected

 private:
  std::map<int, double> table_;  ///< seconds of a verifying pass by rows, as measured first
  double draft_seconds_ = 0;
  double drift_ = 1;  ///< what passes take now (longer contexts, say) / what the table says
  double calibration_ = 1;
  double rate_ = 0;    ///< tokens a second of steps that drafted
  double profit_ = 0;  ///< of drafting over plain decoding, as a share of the time it took
  int trial_ = 0;      ///< drafted steps since the last pause
  int pause_ = 0;      ///< plain steps until the next trial
  int next_pause_;
};

}  // namespace firp
