#include "draft/planner.h"

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <optional>
#include <utility>

#include "engine/token_chain.h"

namespace firp {
namespace {

// Averages are over about this many steps, those of times over half as many: short enough to follow
// a change of subject.
constexpr double kWeight = 1.0 / 16;
// Drafting that loses is stopped after so many steps, and tried again after as many plain ones as
// make what the trials lose this share of the time: soon where little is lost, seldom where text
// cannot be predicted.
constexpr int kTrialSteps = 3;
constexpr double kTrialShare = 0.01;
constexpr int kLongestPause = 256;
// Passes of one kind disturb those of another: behind drafting, a plain pass of a small model on a
// Xeon takes 4.4 ms where it takes 3.3 among its like, and it is over ten passes until the weights
// are back in the cache. So drafting is held against plain passes that have settled, and what those
// before them take longer is counted as lost by the trial.
constexpr int kSettling = 16;
// Where nothing was seen of them for so long, they are made until so many were seen. That costs
// some hundredths of the gain; without it, passes that were measured in a bad moment would make
// drafting look good forever. At first, and where they took another time than expected, the next
// ones come soon.
constexpr int kSeen = 4;
constexpr int kLongestWithoutPlain = 512;
constexpr int kSoon = 64;
constexpr double kExpectedShare = 0.1;
// The first draft, and one in so many later on, goes as far ahead as can be: of steps that are not
// drafted nothing is learnt. So few must count for more.
constexpr int kFarDrafts = 32;
constexpr double kFarWeight = 1.0 / 4;
// Calibration: what lies so many passes back counts half, and begins as if so many tokens had been
// expected and had come.
constexpr double kHalfLifePasses = 64;
constexpr double kPriorTokens = 2;

constexpr int kShortContext = 64, kLongContext = 224;
constexpr int kMeasuredRows[] = {2, 3, 4, 6, 8, 12, 16, 24, 32};  // beside 1
constexpr int kContextRows = 8;  // with which the cost of a position is measured
constexpr int kRounds = 5;
constexpr double kLongSeconds = 1;  // after which two rounds must do: a large model
constexpr double kSettlingSeconds = 0.05;

double probability_of(const DraftNode& node) { return std::exp(double{node.log_probability}); }

template <typename Work>
double seconds_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Some tokens for the positions from `begin` on: the time does not depend on them.
std::vector<Token> any_tokens(const Engine& engine, int begin, int count) {
  std::vector<Token> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(Token((begin + i) * 31 % engine.config().vocabulary_size));
  }
  return tokens;
}

/// A chain of them behind `begin` committed ones.
std::vector<Row> chain(const Engine& engine, int sequence, int begin, int count) {
  return token_chain(sequence, begin, any_tokens(engine, begin, count));
}

double measure_verifying(Engine& engine, int sequence, int count) {
  const std::vector<Row> rows = chain(engine, sequence, engine.length(sequence), count);
  return seconds_of([&] {
    engine.forward(rows);
    engine.best_tokens(first_rows(count), 1);
  });
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
  std::vector<std::vector<float>> sources_;
  std::vector<Row> rows_;
};

Drafting::Drafting(Engine& engine, int sequence) : engine_(engine) {
  const int begin = engine.length(sequence);
  engine.forward(chain(engine, sequence, begin, 1), engine.draft_layers());
  for (int step = 1; step <= engine.draft_steps(); ++step) {
    const std::span<const float> h = engine.draft_source(0, step);
    sources_.emplace_back(h.begin(), h.end());
  }
  engine.commit(sequence, first_rows(1));
  for (int step = 1; step <= engine.draft_steps(); ++step) {
    rows_.push_back({.sequence = sequence,
                     .position = begin + step,
                     .parent = step == 1 ? kContext : step - 2,
                     .step = step,
                     .source = sources_[step - 1],
                     .token_behind = 0});
  }
}

double Drafting::measure(int steps) const {
  return seconds_of([&] {
    engine_.forward(std::span(rows_).first(steps));
    engine_.propose(first_rows(steps));
    build_draft_tree(steps, Planner::kMostNodes, /*root=*/0,
                     [&](int step, std::span<const Token> previous) {
                       return engine_.drafts_behind(step, previous);
                     });
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
  PassCosts costs;
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

double PassCosts::verify(int rows, int context) const {
  const double attention = position_seconds * rows * context;
  const auto above = verify_seconds.lower_bound(rows);
  if (above == verify_seconds.end()) {
    const auto& [most, seconds] = *verify_seconds.rbegin();
    return attention + seconds * rows / most;
  }
  if (above->first == rows || above == verify_seconds.begin()) return attention + above->second;
  const auto below = std::prev(above);
  const double share = static_cast<double>(rows - below->first) / (above->first - below->first);
  return attention + below->second + share * (above->second - below->second);
}

Planner::Planner(PassCosts costs, bool follow)
    : costs_(std::move(costs)), follow_(follow), plain_unseen_(kSoon) {
  expected_.fill(kPriorTokens);
  accepted_.fill(kPriorTokens);
  until_plain_ = kSoon;
}

/// What was not seen for long counts for more. A pass tells something of those with about as many
/// rows, but a plain one nothing of others: the model's memory alone decides what that takes.
void Planner::Drift::observe(int rows, double ratio_now) {
  const double change = std::clamp(ratio_now / ratios_[rows], 0.5, 2.0) - 1;
  for (int other = 1; other < std::ssize(ratios_); ++other) {
    if (other != rows && (other == 1 || rows == 1)) continue;
    const double quotient = static_cast<double>(std::min(rows, other)) / std::max(rows, other);
    const double nearness = quotient * quotient;
    ratios_[other] *= 1 + nearness * std::min((unseen_[other] + 1) * kWeight, 0.5) * change;
    unseen_[other] *= 1 - nearness;
  }
}

int Planner::range_of(double probability, bool from_text) {
  const int likelihood = probability > 0.6 ? 0 : probability > 0.3 ? 1 : probability > 0.1 ? 2 : 3;
  return likelihood + (from_text ? kRanges / 2 : 0);
}

int Planner::range_of(const DraftNode& node) {
  return range_of(probability_of(node), node.from_text);
}

double Planner::calibration(double probability, bool from_text) const {
  const int range = range_of(probability, from_text);
  return accepted_[range] / expected_[range];
}

double Planner::expected_tokens(const DraftNode& node) const {
  return calibration(probability_of(node), node.from_text) * probability_of(node);
}

double Planner::expected_tokens(const DraftTree& tree) const {
  double tokens = 1;
  for (const DraftNode& node : tree) tokens += expected_tokens(node);
  return tokens;
}

/// Of the prefix of `tree` that gives most tokens a second, in a pass that pseudo rows draft for or
/// not, with `draft_seconds` on top.
double Planner::best_rate(const DraftTree& tree, int context, bool drafted, double draft_seconds,
                          int* nodes) const {
  double best = 0;
  double tokens = 1;
  for (int count = 0; count <= std::ssize(tree); ++count) {
    if (count > 0) tokens += expected_tokens(tree[count - 1]);
    const double rate = tokens / (verify_seconds(count + 1, context, drafted) + draft_seconds);
    if (rate > best) {
      best = rate;
      *nodes = count;
    }
  }
  return best;
}

int Planner::nodes_worth_verifying(const DraftTree& tree, int context) const {
  int nodes = 0;
  best_rate(tree, context, drafted_, pause_ == 0 ? draft_seconds() : 0, &nodes);
  return nodes;
}

void Planner::observe_pass(const DraftTree& tree, std::span<const int> accepted, double seconds,
                           int context) {
  const int rows = static_cast<int>(tree.size()) + 1;
  const double tokens = expected_tokens(tree);
  for (Drift& drift : drifts_) drift.pass();
  undrafted_run_ = drafted_ ? 0 : undrafted_run_ + 1;
  until_plain_ = std::max(0, until_plain_ - 1);
  plain_unseen_ = std::min(plain_unseen_ + 1, kSoon);
  if (undrafted_run_ <= kSettling) run_ratio_ = drifts_[false].ratio(1);
  if (follow_ && (drafted_ || undrafted_run_ > kSettling)) {
    drifts_[drafted_].observe(rows, seconds / costs_.verify(rows, context));
    if (!drafted_ && rows == 1) plain_unseen_ = 0;
    if (!drafted_ && rows == 1 && undrafted_run_ >= kSettling + kSeen) {
      const double change = drifts_[false].ratio(1) / run_ratio_ - 1;
      const bool known = std::abs(change) < kExpectedShare || undrafted_run_ > kSoon;
      until_plain_ = known ? kLongestWithoutPlain : kSoon;
    }
  }
  if (!tree.empty()) {
    static const double kFade = std::exp2(-1 / kHalfLifePasses);
    for (int range = 0; range < kRanges; ++range) {
      expected_[range] = kPriorTokens + kFade * (expected_[range] - kPriorTokens);
      accepted_[range] = kPriorTokens + kFade * (accepted_[range] - kPriorTokens);
    }
    for (const DraftNode& node : tree) {
      expected_[range_of(node)] += probability_of(node);
    }
    for (const int node : accepted) accepted_[range_of(tree[node])] += 1;
  }
  if (pause_ > 0) {
    if (follow_ && undrafted_run_ <= kSettling && rows == 1) {
      settling_ratios_ += seconds / costs_.verify(rows, context);
      ++settling_passes_;
    }
    // Later passes are of another moment: they say nothing of how those took longer.
    if (undrafted_run_ <= kSettling + kSeen) pause_ = pause_for_trial(context);
    // Held against a time that has turned out to be too short, the trial may have paid after all.
    // Where that time had been seen just before, most of such a change is noise.
    const double plain_drift = drifts_[false].ratio(1) / trial_plain_ratio_;
    const double enough = trial_was_blind_ ? 1 : 1 + kExpectedShare;
    const bool paid = undrafted_run_ >= kSettling + kSeen && (1 + profit_) * plain_drift > enough;
    if (paid || undrafted_run_ >= pause_) pause_ = trial_ = 0;
  }
  if (!drafted_) return;

  // By what was to be expected: what came varies too much from step to step.
  drafted_ = false;
  if (alone_) learn_steps(tree, context);
  const double step_seconds = verify_seconds(rows, context, true) + draft_seconds();
  const double rate = tokens / step_seconds;
  const double weight = std::max(kWeight, 1.0 / ++trial_);
  rate_ += weight * (rate - rate_);
  profit_ += weight * (rate / rate_without_ - 1 - profit_);
  if (trial_ >= kTrialSteps && profit_ < 0) {
    trial_plain_ratio_ = drifts_[false].ratio(1);
    trial_was_blind_ = plain_unseen_ >= kSoon;
    lost_seconds_ = kTrialSteps * step_seconds * -profit_;
    settling_ratios_ = settling_passes_ = 0;
    pause_ = pause_for_trial(context);
  }
}

/// Steps from the last trial to the next, by what it lost, and the passes behind it until they had
/// settled.
int Planner::pause_for_trial(int context) const {
  const double unsettled = settling_ratios_ - settling_passes_ * drifts_[false].ratio(1);
  const double lost = lost_seconds_ + std::max(0.0, unsettled) * costs_.verify(1, context);
  const double steps = lost / (kTrialShare * verify_seconds(1, context, false));
  return static_cast<int>(std::clamp<double>(steps, kSettling + kSeen, kLongestPause));
}

bool Planner::drafts(const DraftTree& at_hand, int context) {
  if (pause_ > 0) return false;
  if (follow_ && until_plain_ == 0) return false;
  int nodes = 0;
  rate_without_ = best_rate(at_hand, context, false, 0, &nodes);
  // A long match that promises more than drafting has given lately makes pseudo rows pointless.
  drafted_ = nodes == 0 || rate_ == 0 || rate_without_ <= rate_;
  if (drafted_) {
    alone_ = at_hand.empty();
    steps_ = drafts_++ % kFarDrafts == 0 ? 0 : best_steps();
  }
  return drafted_;
}

int Planner::steps() const {
  const int most = static_cast<int>(costs_.draft_seconds.size());
  return steps_ == 0 || most <= 1 ? INT_MAX : steps_;
}

double Planner::draft_seconds() const {
  const std::vector<double>& seconds = costs_.draft_seconds;
  if (seconds.empty()) return 0;
  return seconds[std::min<std::size_t>(steps(), seconds.size()) - 1];
}

/// `tree` was drafted for steps(): what it would have been with fewer is known, too.
void Planner::learn_steps(const DraftTree& tree, int context) {
  step_rates_.resize(costs_.draft_seconds.size());
  DraftTree shallow;
  for (int steps = std::min<int>(this->steps(), std::ssize(step_rates_)); steps > 0; --steps) {
    shallow.clear();
    for (const DraftNode& node : tree) {
      if (node.depth <= steps) shallow.push_back(node);
    }
    int nodes = 0;
    const double rate = best_rate(shallow, context, true, costs_.draft_seconds[steps - 1], &nodes);
    double& average = step_rates_[steps - 1];
    average += (average == 0 ? 1 : steps_ == 0 ? kFarWeight : kWeight) * (rate - average);
  }
}

/// 0 where nothing is known yet.
int Planner::best_steps() const {
  const auto best = std::ranges::max_element(step_rates_);
  return best == step_rates_.end() ? 0 : static_cast<int>(best - step_rates_.begin()) + 1;
}

void Planner::observe_drafting(double seconds) {
  if (costs_.draft_seconds.empty()) costs_.draft_seconds = {seconds};
  if (!follow_) return;
  const double drift = 1 + kWeight * (std::clamp(seconds / draft_seconds(), 0.5, 2.0) - 1);
  for (double& of_steps : costs_.draft_seconds) of_steps *= drift;
}

}  // namespace firp
