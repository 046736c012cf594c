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

TEST(Planner, VerifiesEverythingWhereRowsAreFree) {
  const Planner planner({{1, 1.0}, {33, 1.0}}, 0.1);
  EXPECT_EQ(planner.nodes_worth_verifying(chain(12, 0.5)), 12);
}

TEST(Planner, VerifiesNothingWhereRowsCostAsMuchAsPasses) {
  const Planner planner({{1, 1.0}, {33, 33.0}}, 0.0);
  EXPECT_EQ(planner.nodes_worth_verifying(chain(12, 0.5)), 0);
}

/// The best of all prefixes, by trying each.
TEST(Planner, TakesTheBestPrefix) {
  const Planner planner({{1, 1.0}, {5, 1.2}, {9, 1.7}, {33, 5.0}}, 0.3);
  for (const double p : {0.2, 0.5, 0.8, 0.95}) {
    const DraftTree tree = chain(20, p);
    const auto rate = [&](int nodes) {
      double tokens = 1;
      for (int i = 0; i < nodes; ++i) tokens += std::exp(double{tree[i].log_probability});
      return tokens / (planner.verify_seconds(nodes + 1) + 0.3);
    };
    const int chosen = planner.nodes_worth_verifying(tree);
    for (int nodes = 0; nodes <= 20; ++nodes) EXPECT_LE(rate(nodes), rate(chosen) + 1e-9) << p;
  }
}

TEST(Planner, StopsDraftingThatLosesAndTriesAgainSeldom) {
  Planner planner({{1, 1.0}, {33, 2.0}}, 0.4);
  int drafted = 0;
  for (int step = 0; step < 2000; ++step) {
    const bool drafts = planner.drafts({});
    drafted += drafts;
    planner.observe(drafts ? 4 : 0, drafts ? 0.1 : 0, 0, drafts ? 1.1 : 1.0, drafts, 0.4);
  }
  EXPECT_LT(drafted, 100);
  EXPECT_GE(drafted, 16);
}

TEST(Planner, GoesOnDraftingThatPays) {
  Planner planner({{1, 1.0}, {33, 2.0}}, 0.4);
  for (int step = 0; step < 500; ++step) {
    ASSERT_TRUE(planner.drafts({})) << step;
    planner.observe(4, 1.2, step % 3, 1.1, true, 0.4);
  }
}

TEST(Planner, LeavesOutPseudoRowsWhereALongMatchPromisesMore) {
  Planner planner({{1, 1.0}, {33, 2.0}}, 0.4);
  for (int step = 0; step < 50; ++step) planner.observe(4, 1.0, 1, 1.1, true, 0.4);
  EXPECT_TRUE(planner.drafts(chain(10, 0.2)));
  EXPECT_FALSE(planner.drafts(chain(10, 0.95)));
}

TEST(Planner, LearnsHowTrueTheProbabilitiesAre) {
  Planner planner({{1, 1.0}, {33, 1.0}}, 0.1);
  for (int step = 0; step < 500; ++step) planner.observe(4, 2.0, 1, 1.0, true, 0.1);
  EXPECT_NEAR(planner.calibration(), 0.5, 0.05);
}

TEST(Planner, FollowsPassesThatGetSlower) {
  Planner planner({{1, 1.0}, {33, 4.0}}, 0.1);
  for (int step = 0; step < 200; ++step) planner.observe(0, 0, 0, 1.5, true, 0.1);
  EXPECT_NEAR(planner.verify_seconds(1), 1.5, 0.05);
  EXPECT_NEAR(planner.verify_seconds(33), 6.0, 0.2);
}

}  // namespace
}  // namespace firp
