#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "plan/planner.h"
#include "plan/test_passes.h"

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
      : plan_(planner.begin()), text_(text), random_(seed) {}

  bool ended() const { return tokens_ >= kTokens; }
  double seconds() const { return seconds_ * kTokens / tokens_; }

  void pass(Planner& planner, const PassCosts& costs) {
    tree_.resize(nodes_worth_verifying(planner, plan_, tree_, kContext));
    const double seconds = costs.verify(static_cast<int>(tree_.size()) + 1, kContext);
    count_tokens();
    observe_pass(planner, plan_, tree_, draw_path(), seconds, kContext);
    seconds_ += seconds;
    const Planner::Draftable only = undecided();
    if (!planner.decide({&only, 1}).front()) return;
    const int steps = draft(planner, costs);
    seconds_ += costs.draft_seconds[steps - 1];
    observe_drafting(planner, plan_, costs.draft_seconds[steps - 1]);
  }

  /// Of a pass that verifies tree_.
  double count_tokens() {
    double tokens = 1;
    for (const DraftNode& node : tree_) tokens += true_probability(node, drafts_.truth);
    tokens_ += tokens;
    return tokens;
  }
  Planner::Draftable undecided() {
    tree_.clear();
    drafts_ = tokens_ < kTokens / 2 ? text_.first : text_.second;
    return {plan_, tree_, kContext};
  }
  /// So many steps.
  int draft(const Planner& planner, const PassCosts& costs) {
    const int steps = std::min<int>(planner.steps(plan_), std::ssize(costs.draft_seconds));
    tree_ = tree_of(probability(drafts_, random_), steps);
    return steps;
  }
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

  Plan plan_;
  DraftTree tree_;

 private:
  Text text_;
  std::mt19937 random_;
  Drafts drafts_ = text_.first;  ///< of tree_
  double tokens_ = 0, seconds_ = 0;
};

double plain_seconds(const PassCosts& costs) { return kTokens * costs.verify(1, kContext); }

/// Of so many passes, each with a tree drafted so many steps ahead and cut to so many nodes:
/// [nodes].
std::vector<double> tokens_by_nodes(const Drafts& drafts, int steps, int passes) {
  std::mt19937 random(1);
  std::vector<double> tokens(kMostPlannedNodes + 1, passes);
  for (int pass = 0; pass < passes; ++pass) {
    const DraftTree tree = tree_of(probability(drafts, random), steps);
    double right = 0;
    for (int nodes = 1; nodes <= kMostPlannedNodes; ++nodes) {
      if (nodes <= std::ssize(tree)) right += true_probability(tree[nodes - 1], drafts.truth);
      tokens[nodes] += right;
    }
  }
  return tokens;
}

/// Of the better of plain decoding and the best tree of one size and depth for all of the text.
double best_seconds(const PassCosts& costs, const Text& text) {
  constexpr int kPasses = 200;
  double best = plain_seconds(costs);
  for (int steps = 1; steps <= std::ssize(costs.draft_seconds); ++steps) {
    std::vector<double> seconds(kMostPlannedNodes + 1, 0.0);  // by nodes
    for (const Drafts& drafts : {text.first, text.second}) {
      const std::vector<double> tokens = tokens_by_nodes(drafts, steps, kPasses);
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
  std::vector<Text> all = texts({0.3, 0.6, 0.8, 1, 1.1});
  for (const Text& text : changing_texts()) all.push_back(text);
  for (const Machine& on : machines()) {
    for (const Text& text : all) {
      const double seconds = seconds_alone(on.costs, text);
      EXPECT_LT(seconds, kBehindBest * best_seconds(on.costs, text)) << on.name << text.name();
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

/// What a drafting pass with so many rows takes. More rows cost `joint` times what the planner's
/// first guess says that they do.
double draft_seconds(const PassCosts& costs, int most_steps, int rows, double joint) {
  const double more = costs.verify(rows, kContext) / costs.verify(most_steps, kContext) - 1;
  return (1 + joint * more) * costs.draft_seconds[most_steps - 1];
}

/// Tokens a second of sequences that share their passes.
double rate_together(const PassCosts& costs, const std::vector<Text>& texts, double joint) {
  Planner planner(costs);
  std::vector<Sequence> all;
  for (std::size_t i = 0; i < texts.size(); ++i) all.emplace_back(planner, texts[i], i + 1);
  double seconds = 0, tokens = 0;
  for (int pass = 0; pass < kTokens / 2; ++pass) {
    std::vector<Planner::Candidate> candidates;
    for (Sequence& each : all) candidates.push_back({each.plan_, each.tree_, kContext});
    const std::vector<int> nodes = planner.nodes_worth_verifying(candidates, {}, 1000);
    PassSize size;
    std::vector<Planner::Verified> verified;
    for (std::size_t i = 0; i < all.size(); ++i) {
      Sequence& each = all[i];
      each.tree_.resize(nodes[i]);
      size.add(nodes[i] + 1, kContext);
      tokens += each.count_tokens();
      verified.push_back({each.plan_, each.tree_, each.draw_path(), kContext});
    }
    planner.observe_pass(verified, {}, costs.verify(size));
    seconds += costs.verify(size);
    std::vector<Planner::Draftable> undecided;
    for (Sequence& each : all) undecided.push_back(each.undecided());
    const std::vector<bool> drafts = planner.decide(undecided);
    std::vector<Plan*> drafted;
    int most_steps = 0, rows = 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (!drafts[i]) continue;
      drafted.push_back(&all[i].plan_);
      const int steps = all[i].draft(planner, costs);
      most_steps = std::max(most_steps, steps);
      rows += steps;
    }
    if (drafted.empty()) continue;
    const double here = draft_seconds(costs, most_steps, rows, joint);
    planner.observe_drafting(drafted, here);
    seconds += here;
  }
  return tokens / seconds;
}

/// Of the better of plain decoding and the best tree of one size and depth for all.
double best_rate_together(const PassCosts& costs, const Drafts& drafts, int sequences,
                          double joint) {
  constexpr int kPasses = 200;
  double best = sequences / costs.verify(sequences, kContext);
  for (int steps = 1; steps <= std::ssize(costs.draft_seconds); ++steps) {
    const double drafting = draft_seconds(costs, steps, sequences * steps, joint);
    const std::vector<double> tokens = tokens_by_nodes(drafts, steps, kPasses);
    for (int nodes = 1; nodes <= kMostPlannedNodes; ++nodes) {
      const double pass = costs.verify(sequences * (nodes + 1), kContext) + drafting;
      best = std::max(best, sequences * tokens[nodes] / kPasses / pass);
    }
  }
  return best;
}

TEST(Regret, IsSmallWhereSequencesShareTheirPasses) {
  for (const Machine& on : machines()) {
    for (const int sequences : {2, 4, 8, 16}) {
      const double behind_best = sequences == 2 ? kBehindBest : 1.1;
      for (const double says : {0.1, 0.5, 0.9}) {
        for (const double joint : {0.5, 2.0}) {
          const Text text = Drafts{says, 1};
          const double rate = rate_together(on.costs, std::vector(sequences, text), joint);
          const double plain = sequences / on.costs.verify(sequences, kContext);
          const double best = best_rate_together(on.costs, text.first, sequences, joint);
          const std::string names = fmt::format("{}: {} of {}, joint drafting x {}", on.name,
                                                sequences, text.name(), joint);
          EXPECT_GT(kBehindPlain * rate, plain) << names;
          EXPECT_GT(behind_best * rate, best) << names;
        }
      }
    }
  }
}

/// Drafts that pay in one text must not carry those of another that lose, nor be stopped by them.
TEST(Regret, IsSmallWhereTextsOfAllKindsShareTheirPasses) {
  for (const Machine& on : machines()) {
    for (const double bad : {0.05, 0.2}) {
      const std::vector<Text> mixed = {Drafts{0.9, 1}, Drafts{bad, 1}, Drafts{0.9, 0.3},
                                       Drafts{0.7, 1}};
      const double rate = rate_together(on.costs, mixed, 1);
      EXPECT_GT(kBehindPlain * rate, 4 / on.costs.verify(4, kContext)) << on.name << " " << bad;
    }
  }
}

}  // namespace
}  // namespace firp
