#include "plan/calibration.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace firp {
namespace {

/// Nodes behind the root that are each right with probability `p`.
DraftTree siblings(int nodes, double p) {
  return DraftTree(nodes, {0, kRoot, 1, static_cast<float>(std::log(p))});
}

DraftNode node(double p, int depth = 1, bool from_text = false) {
  return {0, kRoot, depth, static_cast<float>(std::log(p)), from_text};
}

TEST(Calibration, LearnsHowTrueTheProbabilitiesAre) {
  Calibration calibration;
  // Likely nodes come half as often as they should, unlikely ones twice as often.
  DraftTree tree = siblings(1, 0.8);
  tree.push_back(siblings(1, 0.05).front());
  for (int step = 0; step < 2000; ++step) {
    std::vector<int> accepted;
    if (step % 5 < 2) accepted.push_back(0);
    if (step % 10 == 9) accepted.push_back(1);
    calibration.observe(tree, accepted);
  }
  EXPECT_NEAR(calibration.ratio(node(0.8)), 0.5, 0.1);
  EXPECT_GT(calibration.ratio(node(0.05)), 1.3);
  EXPECT_NEAR(calibration.ratio(node(0.2)), 1, 0.1);
  EXPECT_NEAR(calibration.expected_tokens(tree),
              1 + 0.8 * calibration.ratio(node(0.8)) + 0.05 * calibration.ratio(node(0.05)), 1e-6);
  // What the text drafts is another matter: always right here.
  EXPECT_EQ(calibration.ratio(node(0.8, 1, /*from_text=*/true)), 1);
  DraftTree text = siblings(1, 0.8);
  text.front().from_text = true;
  for (int step = 0; step < 200; ++step) calibration.observe(text, std::vector{0});
  EXPECT_NEAR(calibration.ratio(node(0.8, 1, /*from_text=*/true)), 1.25, 0.05);
}

/// Where each step is right half as often as it says, deep nodes are wrong more often than others
/// of the same probability.
TEST(Calibration, LearnsHowTrueTheDepthsAre) {
  Calibration calibration;
  const std::vector<double> path = {0.9, 0.8, 0.7};
  DraftTree tree;
  for (int depth = 1; depth <= 3; ++depth) tree.push_back(node(path[depth - 1], depth));
  for (int step = 0; step < 4000; ++step) {
    std::vector<int> accepted;
    for (int i = 0; i < 3; ++i) {
      const double share = path[i] * std::pow(0.5, i + 1);
      if (std::fmod(step * share, 1.0) + share >= 1) accepted.push_back(i);
    }
    calibration.observe(tree, accepted);
  }
  for (int depth = 1; depth <= 3; ++depth) {
    const double truth = std::pow(0.5, depth);
    EXPECT_NEAR(calibration.ratio(tree[depth - 1]), truth, 0.3 * truth) << depth;
  }
}

/// So that a subject which is left is forgotten.
TEST(Calibration, FadesWithThePasses) {
  Calibration calibration;
  for (int step = 0; step < 500; ++step) calibration.observe(siblings(1, 0.8), {});
  EXPECT_LT(calibration.ratio(node(0.8)), 0.1);
  for (int step = 0; step < 300; ++step) {
    calibration.observe(siblings(1, 0.8), std::vector<int>(step % 5 < 4 ? 1 : 0, 0));
  }
  EXPECT_NEAR(calibration.ratio(node(0.8)), 1, 0.1);
  const double before = calibration.ratio(node(0.8));
  for (int step = 0; step < 100; ++step) calibration.observe({}, {});
  EXPECT_EQ(calibration.ratio(node(0.8)), before) << "a pass without drafts tells nothing of them";
}

}  // namespace
}  // namespace firp
