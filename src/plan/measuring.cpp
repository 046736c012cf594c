#include "plan/measuring.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "draft/draft_tree.h"
#include "engine/token_chain.h"
#include "model/last_level_cache.h"

namespace firp {
namespace {

constexpr int kShortContext = 64, kLongContext = 224;
constexpr int kMeasuredRows[] = {2, 3, 4, 6, 8, 12, 16, 24, 32, 64};  // beside 1
constexpr int kContextRows = 8;  // with which the cost of a position is measured
constexpr int kRounds = 5;
constexpr double kLongSeconds = 1;  // after which two rounds must do: a large model
constexpr double kSettlingSeconds = 0.05;

template <typename Work>
double seconds_of(const Work& work) {
  const Stopwatch watch;
  work();
  return watch.seconds();
}

/// Some tokens for the positions from `begin` on. The time depends on them in mixtures alone, whose
/// rows share the fewer experts the more they differ; these differ more than a text's do.
std::vector<Token> any_tokens(const Engine& engine, int begin, int count) {
  std::vector<Token> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(Token((begin + i) * 31 % engine.config().vocabulary_size));
  }
  return tokens;
}

/// A chain of them behind the committed ones.
std::vector<Row> chain(const Engine& engine, int sequence, int count) {
  return token_chain(sequence, any_tokens(engine, engine.length(sequence), count));
}

double measure_verifying(Engine& engine, int sequence, int count) {
  const std::vector<Row> rows = chain(engine, sequence, count);
  return seconds_of([&] { engine.forward(rows).best_tokens(first_rows(count), 1); });
}

bool needs_round(int rounds, double spent_seconds) {
  return rounds < 2 || (rounds < kRounds && spent_seconds < kLongSeconds);
}

/// What a pass mostly takes: the machine's neighbours come and go, and the best of some would be
/// the lower, the more there are of them. Of two the better one.
double median(std::vector<double> seconds) {
  const auto middle = seconds.begin() + (std::ssize(seconds) - 1) / 2;
  std::ranges::nth_element(seconds, middle);
  return *middle;
}

/// A plain pass among its like, some times.
void measure_plain(Engine& engine, int sequence, std::vector<double>& times) {
  double spent = 0;
  while (spent < kSettlingSeconds) spent += measure_verifying(engine, sequence, 1);
  for (int rounds = 0; needs_round(rounds, spent); ++rounds) {
    times.push_back(measure_verifying(engine, sequence, 1));
    spent += times.back();
  }
}

/// Where pseudo rows draft from: one more token, committed. They are one for each step.
class Drafting {
 public:
  Drafting(Engine& engine, int sequence);
  double measure(int steps) const;

 private:
  Engine& engine_;
  DraftChain chain_;
};

Drafting::Drafting(Engine& engine, int sequence) : engine_(engine) {
  const Pass pass = engine.forward(chain(engine, sequence, 1), engine.draft_layers());
  chain_ = pass.draft_chain(0, engine.draft_steps(), /*token_behind=*/0);
  pass.commit(sequence, first_rows(1));
}

double Drafting::measure(int steps) const {
  return seconds_of([&] {
    const Pass pass = engine_.forward(std::span(chain_.rows).first(steps));
    const Proposal proposal = pass.propose(first_rows(steps));
    build_draft_tree(
        steps, kMostPlannedNodes, /*root=*/0,
        [&](int step, std::span<const Token> previous) { return proposal.behind(step, previous); });
  });
}

/// A pass with more rows takes no less time; where it seems to, the other one was disturbed.
void make_ascending(std::map<int, double>& seconds) {
  double least = INFINITY;
  for (auto each = seconds.rbegin(); each != seconds.rend(); ++each) {
    least = each->second = std::min(least, each->second);
  }
}

void make_ascending(std::vector<double>& seconds) {
  for (std::size_t i = seconds.size(); i-- > 1;) {
    seconds[i - 1] = std::min(seconds[i - 1], seconds[i]);
  }
}

}  // namespace

PassCosts measure_costs(Engine& engine) {
  PassCosts costs = {.keeps_weights = engine.weight_bytes() <= last_level_cache_bytes()};
  const int room = std::min(engine.options().context, engine.options().max_rows);
  const int sequence = engine.add_sequence();
  const auto extend_to = [&](int length) {
    const int begin = engine.length(sequence);
    append_tokens(engine, sequence, any_tokens(engine, begin, length - begin));
  };
  extend_to(std::clamp(room / 4, 1, kShortContext));
  std::optional<Drafting> drafting;
  if (engine.draft_steps() > 0 && engine.length(sequence) + engine.draft_steps() < room) {
    drafting.emplace(engine, sequence);
  }
  std::map<int, std::vector<double>> verifying;
  std::vector<std::vector<double>> drafts(drafting ? engine.draft_steps() : 0);
  std::vector<double> plain;
  measure_plain(engine, sequence, plain);
  for (const int count : kMeasuredRows) {
    if (engine.length(sequence) + count <= room) verifying[count] = {};
  }
  double spent = 0;
  const auto take = [&spent](std::vector<double>& times, double seconds) {
    times.push_back(seconds);
    spent += seconds;
  };
  int rounds = 0;
  for (; needs_round(rounds, spent); ++rounds) {  // all in turn
    for (auto& [count, times] : verifying) take(times, measure_verifying(engine, sequence, count));
    for (int steps = 1; steps <= std::ssize(drafts); ++steps) {
      take(drafts[steps - 1], drafting->measure(steps));
    }
  }
  measure_plain(engine, sequence, plain);
  costs.verify_seconds[1] = median(plain);
  for (const auto& [count, times] : verifying) costs.verify_seconds[count] = median(times);
  for (const std::vector<double>& times : drafts) costs.draft_seconds.push_back(median(times));
  make_ascending(costs.verify_seconds);
  make_ascending(costs.draft_seconds);
  if (kLongContext + kContextRows <= room) {
    const int before = engine.length(sequence);
    extend_to(kLongContext);
    std::vector<double> far;
    for (int round = 0; round < rounds; ++round) {
      far.push_back(measure_verifying(engine, sequence, kContextRows));
    }
    const double more = std::max(0.0, median(far) - costs.verify_seconds.at(kContextRows));
    costs.position_seconds = more / (kContextRows * (kLongContext - before));
  }
  engine.remove_sequence(sequence);
  return costs;
}

}  // namespace firp
