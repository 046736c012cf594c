#pragma once

#include <array>
#include <span>
#include <vector>

#include "draft/draft_tree.h"
#include "plan/calibration.h"
#include "plan/costs.h"
#include "plan/drift.h"
#include "plan/trial.h"

namespace firp {

/// The size of a draft tree that stands for "as many nodes as pay": the planner chooses.
inline constexpr int kPlannedTree = 0;

/// What else is in the passes of a sequence: other sequences, and prompts that are read.
struct Company {
  int sequences = 0;         ///< that decode
  PassSize size;             ///< of their rows, and of those that read
  double tokens = 0;         ///< that the others should give
  double draft_seconds = 0;  ///< of drafting for the others
};

/// What is decided for the next pass of one sequence, and what its text has taught: how far the
/// drafts' probabilities are true, and whether drafting pays. A value that its session holds, and
/// Planner alone reads and writes.
struct Plan {
  struct NextPass {
    bool drafted = false;  ///< by pseudo rows
    int steps = 0;         ///< that were drafted ahead; 0: as many as there are
    int together = 1;      ///< sequences that the same pass drafted for
    bool alone = false;    ///< nothing else was at hand
    // What the sequence would have without: tokens that it should give, and its rows.
    double tokens_without = 1;
    int rows_without = 1;
  };

  NextPass next;
  Calibration calibration;  ///< expects the tokens of a tree
  Company company;          ///< in the last pass
  int company_kind = 0;     ///< beside which the following was learnt
  Trial trial;              ///< of drafting for this sequence, too
  /// Tokens a second of passes that were drafted for, over those that all sequences would have had
  /// if this one had been plain.
  double rate = 0;
  /// The same for passes that are drafted for so many steps ahead: [steps - 1]; of those that had
  /// nothing else at hand.
  std::vector<double> step_rates;
};

/// Decides at each step of a sequence how many nodes of a draft tree are verified, whether pseudo
/// rows draft, and how many steps ahead, to get the most tokens a second:
/// (1 + accepted) / T(step). Where sequences share passes, tokens and time are those of all.
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
  Plan begin() const { return latest_[last_company_]; }

  /// A sequence that decodes in the next pass.
  struct Candidate {
    const Plan& plan;
    const DraftTree& tree;
    int context;
  };
  /// How many of each tree's first nodes should be verified: those that promise most tokens for
  /// what they cost together, `most` at most. `reading`: rows of prompts beside them.
  std::vector<int> nodes_worth_verifying(std::span<const Candidate> sequences,
                                         const PassSize& reading, int most) const;

  /// What came of a sequence's part of a pass: the tree that was verified, and those of its nodes
  /// that were right.
  struct Verified {
    Plan& plan;
    const DraftTree& tree;
    std::vector<int> accepted;
    int context;
  };
  /// Gives the seconds that were to be expected of the pass.
  double observe_pass(std::span<const Verified> sequences, const PassSize& reading, double seconds);

  /// A sequence that pseudo rows can draft for. `at_hand` is what is drafted without them.
  struct Draftable {
    Plan& plan;
    const DraftTree& at_hand;
    int context;
  };
  /// Decides for which sequences pseudo rows draft for the next pass, and how far ahead; for which
  /// they do.
  std::vector<bool> decide(std::span<const Draftable> sequences);

  /// How many steps ahead, where drafting was decided on.
  int steps(const Plan& plan) const;

  /// They did, for these sequences together.
  void observe_drafting(std::span<Plan* const> plans, double seconds);

  /// The next pass is another one than was planned, and its draft is gone.
  static void forget_next(Plan& plan) { plan.next = {}; }

  /// Of a pass. `drafted`: by pseudo rows.
  double verify_seconds(const PassSize& size, bool drafted) const {
    return drifts_.ratio(size.rows, drafted) * costs_.verify(size);
  }
  /// Of the drafting pass for these sequences together.
  double draft_seconds(std::span<const Plan* const> plans) const;

  const PassCosts& costs() const { return costs_; }

 private:
  /// Sequences that draft together, as far as they are told apart.
  static constexpr int kMostAnchors = 16;

  bool decide(const Draftable& sequence) const;
  /// The same as steps(), as far as there are so many.
  int known_steps(const Plan& plan) const;
  double joint_draft_seconds(int sequences, int most_steps, int rows) const;
  double own_draft_seconds(const Plan& plan) const;
  struct Prefix {
    int nodes = 0;
    double tokens = 1;  ///< of the sequence
    double rate = 0;    ///< as in Plan
  };
  Prefix best_prefix(const Plan& plan, const DraftTree& tree, int context, bool drafted,
                     double draft_seconds) const;
  double plain_rate(const Plan& plan, int context) const;
  PlainPasses plain_passes(const PassSize& size, int sequences) const;
  void learn(Plan& plan, const DraftTree& tree, int context, double tokens, bool plain,
             double ratio);
  void learn_together(std::span<const Verified> sequences, const PassSize& size, double tokens,
                      bool plain, double ratio);
  void learn_steps(Plan& plan, const DraftTree& tree, int context) const;

  PassCosts costs_;
  Drifts drifts_;
  bool follow_;
  /// What drafting for so many sequences takes / what was to be expected by that for one:
  /// [sequences].
  std::array<double, kMostAnchors + 1> joint_drafting_;
  int drafts_ = 0;  ///< drafting passes
  // What pays beside twice as many others is another question: each of these is kept by the number
  // of sequences that share passes, 1, 2 .. 3, 4 .. 7, and so on.
  static constexpr int kCompanies = 7;
  static int company_of(int sequences);
  std::array<Trial, kCompanies> together_;  ///< of drafting for all, each of which gains by joining
  std::array<Plan, kCompanies> latest_;     ///< that was observed last, with nothing decided
  int last_company_ = 0;
};

}  // namespace firp
