#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "plan/planner.h"

namespace firp {
namespace {

constexpr int kContext = 0;
constexpr int kTokens = 4000;  // of a text

struct Machine {
  std::string name;
  PassCosts costs;
};

/// Of each step's two candidates the first is right with probability `says`, the other with a part
/// of the rest; in truth both are right so many times as often.
struct Drafts {
  double says, truth;
};

/// The second half may be of another kind than the first.
struct Text {
  Text(Drafts drafts) : Text(drafts, drafts) {}
  Text(Drafts before, Drafts after) : first(before), second(after) {}
  std::string name() const {
    return fmt::format("drafts of {} x {}, then {} x {}", first.says, first.truth, second.says,
                       second.truth);
  }

  Drafts first, second;
};

Machine machine(double many_rows, double step) {
  const double more = many_rows - 1;
  return {fmt::format("32 rows take {}, a drafted step {}", many_rows, step),
          {.verify_seconds = {{1, 1.0},
                              {4, 1 + 0.03 * more},
                              {8, 1 + 0.1 * more},
                              {16, 1 + 0.4 * more},
                              {32, many_rows}},
           .draft_seconds = {step, 1.5 * step, 2 * step, 2.5 * step}}};
}

std::vector<Machine> machines() {
  std::vector<Machine> all;
  for (const double many_rows : {1.2, 2.0, 5.0}) {
    for (const double step : {0.05, 0.15, 0.3}) all.push_back(machine(many_rows, step));
  }
  return all;
}

std::vector<Text> texts(const std::vector<double>& truths) {
  std::vector<Text> all;
  for (const double says : {0.1, 0.3, 0.5, 0.7, 0.9}) {
    for (const double truth : truths) all.emplace_back(Drafts{says, truth});
  }
  return all;
}

std::vector<Text> changing_texts() {
  const Drafts good = {0.9, 1}, fair = {0.5, 1}, bad = {0.1, 1}, untrue = {0.9, 0.3};
  return {{good, bad}, {bad, good}, {fair, bad}, {bad, fair}, {good, untrue}, {untrue, good}};
}

/// The best tree, `steps` ahead, where a step's first candidate has probability `p`.
DraftTree tree_of(double p, int steps) {
  const double second = std::min(0.4 * (1 - p), 0.5 * p);
  const std::vector<Candidate> two = {{1, static_cast<float>(std::log(p))},
                                      {2, static_cast<float>(std::log(second))}};
  return build_draft_tree(std::vector(steps, two), kMostPlannedNodes);
}

double true_probability(const DraftNode& node, double truth) {
  return std::pow(truth, node.depth) * std::exp(double{node.log_probability});
}

/// How sure the drafts are varies from step to step; on average as they say.
double probability(const Drafts& drafts, std::mt19937& random) {
  const double spread = 0.6 * std::min(drafts.says, 1 - drafts.says);
  return std::uniform_real_distribution(drafts.says - spread, drafts.says + spread)(random);
}

/// A sequence whose text is decoded. Tokens and seconds are counted by expectation, so that luck
/// has no part in them; what the planner observes is drawn.
class Sequence {
 public:
  Sequence(const Planner& planner, const Text& text, unsigned seed)
      : text_(text), plan_(planner.begin()), random_(seed) {}

  bool ended() const { return tokens_ >= kTokens; }
  double seconds() const { return seconds_ * kTokens / tokens_; }

  void pass(Planner& planner, const PassCosts& costs) {
    tree_.resize(planner.nodes_worth_verifying(plan_, tree_, kContext));
    const double seconds = costs.verify(static_cast<int>(tree_.size()) + 1, kContext);
    tokens_ += 1;
    for (const DraftNode& node : tree_) tokens_ += true_probability(node, drafts_.truth);
    planner.observe_pass(plan_, tree_, draw_path(), seconds, kContext);
    seconds_ += seconds;
    drafts_ = tokens_ < kTokens / 2 ? text_.first : text_.second;
    tree_.clear();
    if (!planner.decide(plan_, {}, kContext)) return;
    const int steps = std::min<int>(planner.steps(plan_), std::ssize(costs.draft_seconds));
    tree_ = tree_of(probability(drafts_, random_), steps);
    seconds_ += costs.draft_seconds[steps - 1];
    planner.observe_drafting(plan_, costs.draft_seconds[steps - 1]);
  }

 private:
  /// Those of tree_'s nodes that turn out to be right.
  std::vector<int> draw_path() {
    std::vector<int> path;
    int last = kRoot;
    double of_last = 1;
    double luck = 0;
    for (int i = 0; i < std::ssize(tree_); ++i) {
      if (tree_[i].parent != last) continue;
      if (tree_[i].token == 1) luck = std::uniform_real_distribution(0.0, 1.0)(random_);
      luck -= true_probability(tree_[i], drafts_.truth) / of_last;
      if (luck >= 0) continue;
      path.push_back(i);
      last = i;
      of_last = true_probability(tree_[i], drafts_.truth);
    }
    return path;
  }

  Text text_;
  Plan plan_;
  std::mt19937 random_;
  DraftTree tree_;
  Drafts drafts_ = text_.first;  ///< of tree_
  double tokens_ = 0, seconds_ = 0;
};

double plain_seconds(const PassCosts& costs) { return kTokens * costs.verify(1, kContext); }

/// Of the better of plain decoding and the best tree of one size and depth for all of the text.
double best_seconds(const PassCosts& costs, const Text& text) {
  constexpr int kPasses = 200;
  double best = plain_seconds(costs);
  for (int steps = 1; steps <= std::ssize(costs.draft_seconds); ++steps) {
    std::vector<double> seconds(kMostPlannedNodes + 1, 0.0);  // by nodes
    for (const Drafts& drafts : {text.first, text.second}) {
      std::mt19937 random(1);
      std::vector<double> tokens(seconds.size(), kPasses);
      for (int pass = 0; pass < kPasses; ++pass) {
        const DraftTree tree = tree_of(probability(drafts, random), steps);
        double right = 0;
        for (int nodes = 1; nodes <= kMostPlannedNodes; ++nodes) {
          if (nodes <= std::ssize(tree)) right += true_probability(tree[nodes - 1], drafts.truth);
          tokens[nodes] += right;
        }
      }
      for (int nodes = 1; nodes <= kMostPlannedNodes; ++nodes) {
        const double pass = costs.verify(nodes + 1, kContext) + costs.draft_seconds[steps - 1];
        seconds[nodes] += kTokens / 2.0 * pass * kPasses / tokens[nodes];
      }
    }
    best = std::min(best, *std::min_element(seconds.begin() + 1, seconds.end()));
  }
  return best;
}

double seconds_alone(const PassCosts& costs, const Text& text) {
  Planner planner(costs);
  Sequence sequence(planner, text, 1);
  while (!sequence.ended()) sequence.pass(planner, costs);
  return sequence.seconds();
}

constexpr double kBehindBest = 1.05, kBehindPlain = 1.02;

TEST(Regret, IsSmallWhateverTheMachineAndTheText) {
  std::vector<Text> all = texts({0.8, 1});
  for (const Text& text : changing_texts()) all.push_back(text);
  for (const Machine& on : machines()) {
    for (const Text& text : all) {
      const double seconds = seconds_alone(on.costs, text);
      EXPECT_LT(seconds, kBehindBest * best_seconds(on.costs, text)) << on.name << text.name();
      EXPECT_LT(seconds, kBehindPlain * plain_seconds(on.costs)) << on.name << text.name();
    }
  }
}

/// Ratios are learnt by a node's probability, not by its depth. Where all depths are equally wrong
/// that is too good for deep nodes and too bad for the others, which costs more.
TEST(Regret, OfDraftsThatAreFarFromTrueIsBounded) {
  for (const Machine& on : machines()) {
    for (const Text& text : texts({0.3, 0.6})) {
      const double seconds = seconds_alone(on.costs, text);
      EXPECT_LT(seconds, 1.12 * best_seconds(on.costs, text)) << on.name << text.name();
      EXPECT_LT(seconds, kBehindPlain * plain_seconds(on.costs)) << on.name << text.name();
    }
  }
}

TEST(Regret, IsNoLargerWhereSequencesTakeTurns) {
  std::vector<Text> all = changing_texts();
  for (const double says : {0.1, 0.5, 0.9}) all.emplace_back(Drafts{says, 1});
  for (const Machine& on : {machine(1.2, 0.3), machine(2, 0.15), machine(5, 0.05)}) {
    std::vector<double> best;
    for (const Text& text : all) best.push_back(best_seconds(on.costs, text));
    for (std::size_t a = 0; a < all.size(); ++a) {
      for (std::size_t b = a; b < all.size(); ++b) {
        Planner planner(on.costs);
        Sequence one(planner, all[a], 1), other(planner, all[b], 2);
        while (!one.ended() || !other.ended()) {
          if (!one.ended()) one.pass(planner, on.costs);
          if (!other.ended()) other.pass(planner, on.costs);
        }
        const std::string names = on.name + ": " + all[a].name() + " beside " + all[b].name();
        EXPECT_LT(one.seconds(), kBehindBest * best[a]) << names;
        EXPECT_LT(other.seconds(), kBehindBest * best[b]) << names;
        EXPECT_LT(one.seconds(), kBehindPlain * plain_seconds(on.costs)) << names;
        EXPECT_LT(other.seconds(), kBehindPlain * plain_seconds(on.costs)) << names;
      }
    }
  }
}

}  // namespace
}  // namespace firp
