#include "plan/planner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "plan/test_passes.h"

namespace firp {
namespace {

/// A chain of nodes that are each right with probability `p`.
DraftTree chain(int nodes, double p) {
  DraftTree tree;
  for (int i = 0; i < nodes; ++i) {
    tree.push_back({0, i - 1, i + 1, static_cast<float>((i + 1) * std::log(p))});
  }
  return tree;
}

PassCosts costs(std::map<int, double> verify_seconds, double draft_seconds,
                double position_seconds = 0) {
  return {std::move(verify_seconds), {draft_seconds}, position_seconds};
}

constexpr int kShort = 0;  // a context

/// A planner whose passes are all of one sequence.
class OneSequence {
 public:
  explicit OneSequence(PassCosts costs, bool follow = true)
      : planner(std::move(costs), follow), plan(planner.begin()) {}

  int nodes_worth_verifying(const DraftTree& tree, int context) const {
    return firp::nodes_worth_verifying(planner, plan, tree, context);
  }
  void observe_pass(const DraftTree& tree, std::span<const int> accepted, double seconds,
                    int context) {
    firp::observe_pass(planner, plan, tree, accepted, seconds, context);
  }
  bool drafts(const DraftTree& at_hand, int context) {
    return decide(planner, plan, at_hand, context);
  }
  int steps() const { return planner.steps(plan); }
  void observe_drafting(double seconds) { firp::observe_drafting(planner, plan, seconds); }
  double verify_seconds(int rows, int context) const {
    return planner.verify_seconds(PassSize().with(rows, context), plan.next.drafted);
  }
  double draft_seconds() {
    Plan* const only = &plan;
    return planner.draft_seconds({&only, 1});
  }

  Planner planner;
  Plan plan;
};

TEST(Planner, VerifiesEverythingWhereRowsAreFree) {
  const OneSequence planner(costs({{1, 1.0}, {32, 1.0}}, 0.1));
  EXPECT_EQ(planner.nodes_worth_verifying(chain(12, 0.5), kShort), 12);
}

TEST(Planner, VerifiesNothingWhereRowsCostAsMuchAsPasses) {
  const OneSequence planner(costs({{1, 1.0}, {32, 32.0}}, 0.0));
  EXPECT_EQ(planner.nodes_worth_verifying(chain(12, 0.5), kShort), 0);
}

TEST(Planner, VerifiesLessOnLongContexts) {
  const OneSequence planner(costs({{1, 1.0}, {32, 1.2}}, 0.1, 1e-4));
  const int near = planner.nodes_worth_verifying(chain(12, 0.8), 100);
  const int far = planner.nodes_worth_verifying(chain(12, 0.8), 8000);
  EXPECT_LT(far, near);
  EXPECT_NEAR(planner.verify_seconds(10, 8000) - planner.verify_seconds(10, 0), 8.0, 1e-9);
}

/// The best of all prefixes, by trying each.
TEST(Planner, TakesTheBestPrefix) {
  const OneSequence planner(costs({{1, 1.0}, {5, 1.2}, {9, 1.7}, {32, 5.0}}, 0.3));
  for (const double p : {0.2, 0.5, 0.8, 0.95}) {
    const DraftTree tree = chain(20, p);
    const auto rate = [&](int nodes) {
      double tokens = 1;
      for (int i = 0; i < nodes; ++i) tokens += std::exp(double{tree[i].log_probability});
      return tokens / (planner.verify_seconds(nodes + 1, kShort) + 0.3);
    };
    const int chosen = planner.nodes_worth_verifying(tree, kShort);
    for (int nodes = 0; nodes <= 20; ++nodes) EXPECT_LE(rate(nodes), rate(chosen) + 1e-9) << p;
  }
}

/// Nodes behind the root that are each right with probability `p`.
DraftTree siblings(int nodes, double p) {
  return DraftTree(nodes, {0, kRoot, 1, static_cast<float>(std::log(p))});
}

/// So many of a tree's nodes that over the steps `a_pass` of them are right in each.
std::vector<int> accepted_of(const DraftTree& tree, double a_pass, int step) {
  const int count = static_cast<int>((step + 1) * a_pass) - static_cast<int>(step * a_pass);
  std::vector<int> accepted;
  for (int i = 0; i < std::min(count, static_cast<int>(tree.size())); ++i) accepted.push_back(i);
  return accepted;
}

/// `steps` steps in which drafting for 0.4 seconds gives `expected` tokens; how many it chose.
int drafted_steps(OneSequence& planner, int steps, double expected, const DraftTree& at_hand = {}) {
  int drafted = 0;
  for (int step = 0; step < steps; ++step) {
    const bool drafts = planner.drafts(at_hand, kShort);
    if (drafts) planner.observe_drafting(0.4);
    drafted += drafts;
    const DraftTree tree = drafts ? siblings(4, expected / 4) : DraftTree();
    planner.observe_pass(tree, accepted_of(tree, expected, step), drafts ? 1.1 : 1.0, kShort);
  }
  return drafted;
}

TEST(Planner, StopsDraftingThatLosesAndTriesAgainSeldom) {
  OneSequence planner(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  const int drafted = drafted_steps(planner, 2000, 0.1);
  EXPECT_LT(drafted, 100);
  EXPECT_GE(drafted, 8);
}

TEST(Planner, GoesOnDraftingThatPays) {
  OneSequence planner(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  EXPECT_GT(drafted_steps(planner, 2000, 1.0), 1900) << "a plain pass now and then, no more";
}

/// Passes of a machine where plain ones take 1 second, others 1.1 and drafting 0.4; how many of the
/// last half were drafted for, where a draft gives 0.3 tokens: 1.3 in 1.5 seconds.
double drafted_share(OneSequence& planner) {
  drafted_steps(planner, 200, 0.3);
  return drafted_steps(planner, 200, 0.3) / 200.0;
}

TEST(Planner, FindsOutThatPlainPassesTakeLessThanWasMeasured) {
  OneSequence right(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  OneSequence wrong(costs({{1, 1.5}, {5, 1.6}, {32, 2.0}}, 0.4));
  EXPECT_LT(drafted_share(right), 0.1);
  EXPECT_LT(drafted_share(wrong), 0.1);
  EXPECT_NEAR(wrong.verify_seconds(1, kShort), 1.0, 0.05);
}

TEST(Planner, FindsOutSoonThatAllTakesLongerThanWasMeasured) {
  OneSequence busy(costs({{1, 0.5}, {5, 0.55}, {32, 1.0}}, 0.2));
  EXPECT_GT(drafted_steps(busy, 100, 1.0), 70);
}

/// A trial that is held against plain passes as they were measured in another run of the program
/// loses by 8 % where all takes a fifth longer by now; held against those of now it gains.
TEST(Planner, TriesAgainSoonWhatWasHeldAgainstOldTimes) {
  OneSequence planner(costs({{1, 0.8}, {5, 1.1}, {32, 2.0}}, 0.4));
  EXPECT_GT(drafted_steps(planner, 200, 0.7), 120);
}

/// A machine where a plain pass takes 1 second among its like, but 1.4 behind drafting, and then
/// less from pass to pass. Drafting gives 1.8 tokens in 1.6 seconds.
TEST(Planner, HoldsDraftingAgainstPlainPassesThatHaveSettled) {
  OneSequence planner(costs({{1, 1.0}, {5, 1.2}, {32, 2.0}}, 0.4));
  const auto pays = [&](double tokens) {
    int drafted = 0;
    double disturbed = 0;
    for (int step = 0; step < 2000; ++step) {
      const bool drafts = planner.drafts({}, kShort);
      if (drafts) planner.observe_drafting(0.4);
      const DraftTree tree = drafts ? siblings(4, tokens / 4) : DraftTree();
      planner.observe_pass(tree, accepted_of(tree, tokens, step), drafts ? 1.2 : 1.0 + disturbed,
                           kShort);
      disturbed = drafts ? 0.4 : 0.8 * disturbed;
      drafted += drafts;
    }
    return drafted / 2000.0;
  };
  EXPECT_GT(pays(0.8), 0.9);
  EXPECT_LT(pays(0.5), 0.1) << "1.5 tokens in 1.6 seconds";
}

TEST(Planner, FindsOutThatPlainPassesTakeMoreThanWasMeasured) {
  OneSequence wrong(costs({{1, 0.5}, {5, 1.1}, {32, 2.0}}, 0.4));
  drafted_steps(wrong, 300, 1.0);  // the first trial seems so bad that a long pause follows
  EXPECT_GT(drafted_steps(wrong, 200, 1.0), 180);
}

/// Passes for which `planner.steps()` steps are drafted, `far` at most, each node right with
/// probability `p` behind the one before. How many the last draft had.
int last_steps(OneSequence& planner, int passes, double p, int far) {
  int steps = 0;
  for (int step = 0; step < passes; ++step) {
    if (!planner.drafts({}, kShort)) {
      planner.observe_pass({}, {}, planner.verify_seconds(1, kShort), kShort);
      continue;
    }
    steps = std::min(planner.steps(), far);
    planner.observe_drafting(planner.draft_seconds());
    const DraftTree tree = chain(steps, p);
    std::vector<int> accepted;  // as many as the probabilities promise, over the steps
    for (int i = 0; i < steps; ++i) {
      if (std::fmod(step * std::pow(p, i + 1), 1.0) + std::pow(p, i + 1) >= 1)
        accepted.push_back(i);
    }
    planner.observe_pass(tree, accepted, planner.verify_seconds(steps + 1, kShort), kShort);
  }
  return steps;
}

TEST(Planner, DraftsAsFarAheadAsPays) {
  // A step ahead costs a fifth of a pass, and verifying it a hundredth.
  const PassCosts dear = {{{1, 1.0}, {32, 1.31}}, {0.2, 0.4, 0.6, 0.8}, 0};
  OneSequence sure(dear), unsure(dear);
  EXPECT_EQ(last_steps(sure, 300, 0.95, 4), 4);
  EXPECT_EQ(last_steps(unsure, 300, 0.35, 4), 1);
  EXPECT_EQ(last_steps(unsure, 300, 0.95, 4), 4) << "it must see when steps come to pay";
  OneSequence whole(costs({{1, 1.0}, {32, 1.31}}, 0.2));
  EXPECT_EQ(last_steps(whole, 10, 0.5, 7), 7) << "one cost for all steps: nothing to choose";
}

TEST(Planner, LeavesOutPseudoRowsWhereALongMatchPromisesMore) {
  OneSequence planner(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  drafted_steps(planner, 50, 1.0);
  EXPECT_TRUE(planner.drafts(chain(10, 0.2), kShort));
  EXPECT_FALSE(planner.drafts(chain(10, 0.95), kShort));
}

/// Not what drafting gives counts, but what it adds to what is there without it.
TEST(Planner, StopsDraftingWhereMatchesDoAsWell) {
  OneSequence planner(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  EXPECT_LT(drafted_steps(planner, 500, 1.0, chain(4, 0.55)), 100);
}

/// What is lost a step decides how soon it is tried again.
TEST(Planner, TriesDraftingThatAlmostPaysMoreOften) {
  OneSequence bad(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  OneSequence almost(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  EXPECT_LT(1.4 * drafted_steps(bad, 2000, 0.1), drafted_steps(almost, 2000, 0.45));
}

TEST(Planner, KeepsToTimesThatAreOnlyImagined) {
  OneSequence planner(costs({{1, 1.0}, {32, 1.0}}, 0.1), /*follow=*/false);
  for (int step = 0; step < 100; ++step) {
    planner.observe_pass(siblings(4, 0.2), {}, 5.0, kShort);
    planner.observe_drafting(2.0);
  }
  EXPECT_EQ(planner.verify_seconds(5, kShort), 1.0);
  EXPECT_EQ(planner.draft_seconds(), 0.1);
}

TEST(Planner, FollowsPassesThatGetSlower) {
  OneSequence planner(costs({{1, 1.0}, {32, 4.0}}, 0.1));
  for (int step = 0; step < 200; ++step) planner.observe_pass({}, {}, 1.5, kShort);
  EXPECT_NEAR(planner.verify_seconds(1, kShort), 1.5, 0.05);
  EXPECT_EQ(planner.verify_seconds(32, kShort), 4.0);
  for (int step = 0; step < 200; ++step) planner.observe_pass(chain(31, 0.5), {}, 6.0, kShort);
  EXPECT_NEAR(planner.verify_seconds(1, kShort), 1.5, 0.05);
  EXPECT_NEAR(planner.verify_seconds(32, kShort), 6.0, 0.2);
}

/// As on a machine whose memory is faster by now: few rows take what they took, but no longer hide
/// what many take.
TEST(Planner, LearnsWhatPassesTakeByTheirRows) {
  OneSequence planner(costs({{1, 1.0}, {32, 1.1}}, 0.1));
  const auto seconds_of = [](const DraftTree& tree) {
    const int rows = static_cast<int>(tree.size()) + 1;
    return rows <= 4 ? 1.0 : 1.0 + 0.2 * (rows - 4);
  };
  const auto rate = [&](const DraftTree& tree) {
    double tokens = 1;
    for (const DraftNode& node : tree) tokens += std::exp(double{node.log_probability});
    return tokens / seconds_of(tree);
  };
  double chosen = 0, best = 0;
  for (int step = 0; step < 300; ++step) {
    const double p = 0.5 + 0.045 * (step * 7 % 10);
    DraftTree tree = chain(20, p);
    tree.resize(planner.nodes_worth_verifying(tree, kShort));
    std::vector<int> accepted;  // as many as the probabilities promise, over the steps
    for (int i = 0; i < std::ssize(tree); ++i) {
      const double share = std::pow(p, i + 1);
      if (std::fmod(step / 10 * share, 1.0) + share >= 1) accepted.push_back(i);
    }
    planner.observe_pass(tree, accepted, seconds_of(tree), kShort);
    if (step < 100) continue;
    chosen += rate(tree);
    double most = 0;
    for (int nodes = 0; nodes <= 20; ++nodes) most = std::max(most, rate(chain(nodes, p)));
    best += most;
  }
  EXPECT_GT(chosen, 0.97 * best);
}

/// One of two sequences that take turns.
struct Turn {
  Plan plan;
  double expected = 0;   ///< tokens that a draft of 0.4 seconds promises,
  double came = 0;       ///< and those that come of it
  bool matches = false;  ///< its text has matches that are always right, and so needs no drafts
  DraftTree tree = {};
  int drafted = 0;

  void pass(Planner& planner, int step) {
    tree.resize(nodes_worth_verifying(planner, plan, tree, kShort));
    std::vector<int> accepted = accepted_of(tree, came, step);
    if (matches) {
      accepted.resize(tree.size());
      std::iota(accepted.begin(), accepted.end(), 0);
    }
    const int rows = static_cast<int>(tree.size()) + 1;
    observe_pass(planner, plan, tree, accepted, planner.costs().verify(rows, kShort), kShort);
    DraftTree match;
    if (matches) match = chain(6, 0.95);
    for (DraftNode& node : match) node.from_text = true;
    const bool drafts = decide(planner, plan, match, kShort);
    drafted += drafts;
    if (drafts) observe_drafting(planner, plan, 0.4);
    tree = matches ? match : drafts ? siblings(4, expected / 4) : DraftTree();
  }
};

Planner planner_of_turns() {
  return Planner(costs({{1, 1.0}, {5, 1.1}, {7, 1.15}, {32, 2.0}}, 0.4));
}

/// Of 2000 passes of a sequence whose drafts promise so many tokens; beside the passes of another.
int drafted_in_turns(double expected, double came, const Turn* beside) {
  Planner planner = planner_of_turns();
  Turn one = {.plan = planner.begin(), .expected = expected, .came = came};
  Turn other = beside != nullptr ? *beside : Turn();
  for (int step = 0; step < 2000; ++step) {
    one.pass(planner, step);
    if (beside != nullptr) other.pass(planner, step);
  }
  return one.drafted;
}

constexpr int kOneTrial = 3;  // steps

/// As when a server answers several requests at once.
TEST(Planner, StopsDraftingThatLosesWhateverAnotherSequenceDoes) {
  const std::vector<Turn> others = {{.matches = true},  // the text drafts, and pseudo rows need not
                                    {.expected = 0.1, .came = 0.1},   // drafting loses there, too
                                    {.expected = 1.0, .came = 1.0},   // it pays there,
                                    {.expected = 1.0, .came = 2.0},   // and more than it promises,
                                    {.expected = 1.0, .came = 0.3}};  // or less
  const std::vector<std::pair<double, int>> losing = {{0.1, 51}, {0.2, 66}, {0.3, 84}, {0.45, 249}};
  for (const auto& [tokens, steps] : losing) {
    EXPECT_EQ(drafted_in_turns(tokens, tokens, nullptr), steps) << tokens;
    for (const Turn& other : others) {
      EXPECT_LE(drafted_in_turns(tokens, tokens, &other), steps + kOneTrial) << tokens;
    }
  }
}

/// Drafts that promise 1 token and give 0.4 lose; those of another text that keep their promise
/// must not make them look better.
TEST(Planner, LearnsHowTrueDraftsAreForEachSequence) {
  const Turn honest = {.expected = 1.0, .came = 1.0};
  EXPECT_LE(drafted_in_turns(1.0, 0.4, &honest), 1.25 * drafted_in_turns(1.0, 0.4, nullptr));
}

TEST(Planner, GoesOnDraftingThatPaysWhateverAnotherSequenceDoes) {
  for (const Turn& other : {Turn{.matches = true}, Turn{.expected = 0.1, .came = 0.1}}) {
    EXPECT_GT(drafted_in_turns(1.0, 1.0, &other), 1850);
  }
}

/// Short texts would pay for a trial each.
TEST(Planner, BeginsASequenceWithWhatTheLastOneHasLearnt) {
  Planner planner = planner_of_turns();
  int drafted = 0;
  for (int text = 0; text < 40; ++text) {
    Turn turn = {.plan = planner.begin(), .expected = 0.1, .came = 0.1};
    for (int step = 0; step < 50; ++step) turn.pass(planner, step);
    drafted += turn.drafted;
  }
  EXPECT_LE(drafted, 60) << "51 of 2000 passes of one text";
}

/// As after an answer that was cut: what comes is not the pass that was drafted for.
TEST(Planner, HoldsAPassThatHasLostItsDraftAgainstNothing) {
  Planner planner = planner_of_turns();
  Plan plan = planner.begin();
  ASSERT_TRUE(decide(planner, plan, {}, kShort));
  Planner::forget_next(plan);
  observe_pass(planner, plan, {}, {}, 1.0, kShort);
  EXPECT_TRUE(plan.trial.begins()) << "nothing was tried";
}

}  // namespace
}  // namespace firp
