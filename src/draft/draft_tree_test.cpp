#include "draft/draft_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>

namespace firp {
namespace {

TEST(TopCandidates, AreTheBestWithTheirLogSoftmax) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 4);
  std::vector<float> logits(1003);
  for (float& logit : logits) logit = normal(random);
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, [&](int a, int b) { return logits[a] > logits[b]; });
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double(logit));

  const std::vector<Candidate> best = top_candidates(logits, 20);
  ASSERT_EQ(best.size(), 20u);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(best[i].token, order[i]);
    EXPECT_NEAR(best[i].log_probability, logits[order[i]] - std::log(sum), 1e-3);
  }
}

TEST(TopCandidates, TiesGoToTheLowerTokenAndNansAreLeftOut) {
  const std::vector<float> logits = {1, std::nanf(""), 3, 3,
                                     -std::numeric_limits<float>::infinity()};
  const std::vector<Candidate> best = top_candidates(logits, 3);
  ASSERT_EQ(best.size(), 3u);
  EXPECT_EQ(best[0].token, 2);
  EXPECT_EQ(best[1].token, 3);
  EXPECT_EQ(best[2].token, 0);
}

/// Log-probability of the path that ends at `node`.
double path_probability(const DraftTree& tree, int node,
                        const std::vector<std::vector<Candidate>>& steps) {
  double sum = 0;
  for (; node != kRoot; node = tree[node].parent) {
    const auto& candidates = steps[tree[node].depth - 1];
    sum += std::ranges::find(candidates, tree[node].token, &Candidate::token)->log_probability;
  }
  return sum;
}

TEST(DraftTree, HoldsTheMostProbablePaths) {
  std::mt19937 random(2);
  for (int round = 0; round < 20; ++round) {
    std::vector<std::vector<Candidate>> steps(3);
    for (auto& step : steps) {
      for (int i = 0; i < 4; ++i) {
        step.push_back({i, -std::uniform_real_distribution<float>(0.1f, 5)(random)});
      }
      std::ranges::sort(step, std::greater{}, &Candidate::log_probability);
    }
    // Every path of one to three tokens, by brute force.
    std::vector<double> all;
    for (const Candidate& a : steps[0]) {
      all.push_back(a.log_probability);
      for (const Candidate& b : steps[1]) {
        all.push_back(double(a.log_probability) + b.log_probability);
        for (const Candidate& c : steps[2]) {
          all.push_back(double(a.log_probability) + b.log_probability + c.log_probability);
        }
      }
    }
    std::ranges::sort(all, std::greater{});
    for (const int nodes : {1, 2, 9, 40, 84}) {
      const DraftTree tree = build_draft_tree(steps, nodes);
      ASSERT_EQ(tree.size(), static_cast<std::size_t>(nodes));
      std::set<std::pair<int, Token>> children;
      for (int i = 0; i < nodes; ++i) {
        EXPECT_LT(tree[i].parent, i);
        EXPECT_EQ(tree[i].depth, tree[i].parent == kRoot ? 1 : tree[tree[i].parent].depth + 1);
        EXPECT_TRUE(children.insert({tree[i].parent, tree[i].token}).second);
        EXPECT_NEAR(path_probability(tree, i, steps), all[i], 1e-4);
      }
    }
    EXPECT_EQ(build_draft_tree(steps, 1000).size(), 84u);
  }
}

TEST(DraftTree, OneCandidateAStepIsAChain) {
  const std::vector<std::vector<Candidate>> steps = {{{7, -1}}, {{8, -2}}, {{9, -3}}};
  const DraftTree tree = build_draft_tree(steps, 16);
  ASSERT_EQ(tree.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(tree[i].token, 7 + i);
    EXPECT_EQ(tree[i].parent, i - 1);
  }
  EXPECT_TRUE(build_draft_tree({}, 16).empty());
}

}  // namespace
}  // namespace firp
