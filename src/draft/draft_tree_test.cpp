#include "draft/draft_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <set>

namespace firp {
namespace {

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
        EXPECT_NEAR(tree[i].log_probability, all[i], 1e-4);
      }
    }
    EXPECT_EQ(build_draft_tree(steps, 1000).size(), 84u);
  }
}

/// Candidates that depend on the step and the token before: a table of conditional probabilities.
struct Table {
  explicit Table(int seed) {
    std::mt19937 random(seed);
    for (auto& step : after) {
      for (auto& candidates : step) {
        for (int i = 0; i < kTokens; ++i) {
          candidates.push_back({i, -std::uniform_real_distribution<float>(0.1f, 5)(random)});
        }
        std::ranges::sort(candidates, std::greater{}, &Candidate::log_probability);
      }
    }
  }
  static constexpr int kSteps = 3, kTokens = 4;
  std::vector<Candidate> after[kSteps][kTokens];

  std::vector<std::vector<Candidate>> operator()(int step, std::span<const Token> previous) const {
    std::vector<std::vector<Candidate>> out;
    for (const Token token : previous) out.push_back(after[step - 1][token]);
    return out;
  }

  /// The probabilities of all paths, best first.
  std::vector<double> all_paths(Token root) const {
    std::vector<double> all;
    const auto extend = [&](auto& self, int depth, Token token, double so_far) -> void {
      if (depth == kSteps) return;
      for (const Candidate& candidate : after[depth][token]) {
        all.push_back(so_far + candidate.log_probability);
        self(self, depth + 1, candidate.token, all.back());
      }
    };
    extend(extend, 0, root, 0);
    std::ranges::sort(all, std::greater{});
    return all;
  }
};

TEST(DraftTree, HoldsTheMostProbablePathsOfConditionals) {
  for (int seed = 0; seed < 20; ++seed) {
    const Table table(seed);
    const Token root = seed % Table::kTokens;
    const std::vector<double> all = table.all_paths(root);
    const DraftTree largest = build_draft_tree(Table::kSteps, 84, root, std::cref(table));
    for (const int nodes : {1, 2, 9, 40, 84}) {
      const DraftTree tree = build_draft_tree(Table::kSteps, nodes, root, std::cref(table));
      ASSERT_EQ(tree.size(), static_cast<std::size_t>(nodes));
      for (int i = 0; i < nodes; ++i) {
        const DraftNode& node = tree[i];
        ASSERT_LT(node.parent, i);
        EXPECT_EQ(node.depth, node.parent == kRoot ? 1 : tree[node.parent].depth + 1);
        const Token before = node.parent == kRoot ? root : tree[node.parent].token;
        const auto& candidates = table.after[node.depth - 1][before];
        const auto own = std::ranges::find(candidates, node.token, &Candidate::token);
        const float parent = node.parent == kRoot ? 0 : tree[node.parent].log_probability;
        EXPECT_FLOAT_EQ(node.log_probability, parent + own->log_probability);
        EXPECT_NEAR(node.log_probability, all[i], 1e-4);
        // A smaller tree is the beginning of a larger one.
        EXPECT_EQ(node.token, largest[i].token);
        EXPECT_EQ(node.parent, largest[i].parent);
      }
    }
  }
}

TEST(DraftTree, AsksOnceADepthAndOnlyAboutNodesThatCanCount) {
  std::vector<std::size_t> asked;
  std::vector<Token> first;
  const auto flat = [&](int step, std::span<const Token> previous) {
    EXPECT_EQ(step, static_cast<int>(asked.size()) + 1);
    asked.push_back(previous.size());
    if (step == 1) first.assign(previous.begin(), previous.end());
    std::vector<Candidate> candidates;
    for (int i = 0; i < 32; ++i) candidates.push_back({i, -3.5f - 0.001f * static_cast<float>(i)});
    return std::vector(previous.size(), candidates);
  };
  const DraftTree tree = build_draft_tree(4, 30, 77, flat);
  EXPECT_EQ(first, std::vector<Token>{77});
  // 30 nodes at depth 1 leave no room behind them, but that is seen only after asking.
  EXPECT_EQ(asked, (std::vector<std::size_t>{1, kBeam}));
  EXPECT_EQ(tree.size(), 30u);
  asked.clear();
  EXPECT_EQ(build_draft_tree(4, 3, 77, flat).size(), 3u);
  EXPECT_EQ(asked, (std::vector<std::size_t>{1, 3}));
}

TEST(DraftTree, EndsWhereNothingIsProposed) {
  const auto twice = [](int step, std::span<const Token> previous) {
    return std::vector(previous.size(),
                       step < 3 ? std::vector<Candidate>{{step, -1}} : std::vector<Candidate>{});
  };
  EXPECT_EQ(build_draft_tree(5, 8, 0, twice).size(), 2u);
  EXPECT_TRUE(build_draft_tree(5, 0, 0, twice).empty());
  EXPECT_TRUE(build_draft_tree(0, 8, 0, twice).empty());
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
