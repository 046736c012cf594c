#include "draft/planner.h"

#include <gtest/gtest.h>

#include <cmath>

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
  return {std::move(verify_seconds), draft_seconds, position_seconds};
}

constexpr int kShort = 0;  // a context

TEST(Planner, VerifiesEverythingWhereRowsAreFree) {
  const Planner planner(costs({{1, 1.0}, {32, 1.0}}, 0.1));
  EXPECT_EQ(planner.nodes_worth_verifying(chain(12, 0.5), kShort), 12);
}

TEST(Planner, VerifiesNothingWhereRowsCostAsMuchAsPasses) {
  const Planner planner(costs({{1, 1.0}, {32, 32.0}}, 0.0));
  EXPECT_EQ(planner.nodes_worth_verifying(chain(12, 0.5), kShort), 0);
}

TEST(Planner, VerifiesLessOnLongContexts) {
  const Planner planner(costs({{1, 1.0}, {32, 1.2}}, 0.1, 1e-4));
  const int near = planner.nodes_worth_verifying(chain(12, 0.8), 100);
  const int far = planner.nodes_worth_verifying(chain(12, 0.8), 8000);
  EXPECT_LT(far, near);
  EXPECT_NEAR(planner.verify_seconds(10, 8000) - planner.verify_seconds(10, 0), 8.0, 1e-9);
}

/// The best of all prefixes, by trying each.
TEST(Planner, TakesTheBestPrefix) {
  const Planner planner(costs({{1, 1.0}, {5, 1.2}, {9, 1.7}, {32, 5.0}}, 0.3));
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

/// `steps` steps in which drafting for 0.4 seconds gives `expected` tokens; how many it chose.
int drafted_steps(Planner& planner, int steps, double expected, const DraftTree& at_hand = {}) {
  int drafted = 0;
  for (int step = 0; step < steps; ++step) {
    const bool drafts = planner.drafts(at_hand, kShort);
    if (drafts) planner.observe_drafting(0.4);
    drafted += drafts;
    planner.observe_pass(drafts ? 4 : 0, drafts ? expected : 0, drafts ? std::lround(expected) : 0,
                         drafts ? 1.1 : 1.0, kShort);
  }
  return drafted;
}

TEST(Planner, StopsDraftingThatLosesAndTriesAgainSeldom) {
  Planner planner(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  const int drafted = drafted_steps(planner, 2000, 0.1);
  EXPECT_LT(drafted, 70);
  EXPECT_GE(drafted, 8);
}

TEST(Planner, GoesOnDraftingThatPays) {
  Planner planner(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  EXPECT_EQ(drafted_steps(planner, 500, 1.0), 500);
}

TEST(Planner, LeavesOutPseudoRowsWhereALongMatchPromisesMore) {
  Planner planner(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  drafted_steps(planner, 50, 1.0);
  EXPECT_TRUE(planner.drafts(chain(10, 0.2), kShort));
  EXPECT_FALSE(planner.drafts(chain(10, 0.95), kShort));
}

/// Not what drafting gives counts, but what it adds to what is there without it.
TEST(Planner, StopsDraftingWhereMatchesDoAsWell) {
  Planner planner(costs({{1, 1.0}, {5, 1.1}, {32, 2.0}}, 0.4));
  EXPECT_LT(drafted_steps(planner, 500, 1.0, chain(4, 0.55)), 100);
}

TEST(Planner, LearnsHowTrueTheProbabilitiesAre) {
  Planner planner(costs({{1, 1.0}, {32, 1.0}}, 0.1));
  for (int step = 0; step < 500; ++step) planner.observe_pass(4, 2.0, 1, 1.0, kShort);
  EXPECT_NEAR(planner.calibration(), 0.5, 0.05);
}

TEST(Planner, FollowsPassesThatGetSlower) {
  Planner planner(costs({{1, 1.0}, {32, 4.0}}, 0.1));
  for (int step = 0; step < 200; ++step) planner.observe_pass(0, 0, 0, 1.5, kShort);
  EXPECT_NEAR(planner.verify_seconds(1, kShort), 1.5, 0.05);
  EXPECT_EQ(planner.verify_seconds(32, kShort), 4.0);
  for (int step = 0; step < 200; ++step) planner.observe_pass(31, 1, 1, 6.0, kShort);
  EXPECT_NEAR(planner.verify_seconds(1, kShort), 1.5, 0.05);
  EXPECT_NEAR(planner.verify_seconds(32, kShort), 6.0, 0.2);
}

}  // namespace
}  // namespace firp
