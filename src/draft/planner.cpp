#include "draft/planner.h"

#include <algorithm>
#include <chrono>
#include <cmath>

namespace firp {
namespace {

// Averages are over about this many steps: short enough to follow a change of subject.
constexpr double kWeight = 1.0 / 16;
// Drafting that loses is stopped after so many steps, for a while that doubles each time: text that
// cannot be predicted then costs next to nothing.
constexpr int kTrialSteps = 8;
constexpr int kFirstPause = 32;
constexpr int kLongestPause = 1024;

constexpr int kMeasuredContext = 64;
constexpr int kMeasuredRows[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 33};
constexpr int kRuns = 3;

template <typename Work>
double best_seconds(const Work& work) {
  double best = INFINITY;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace

Planner::Planner(std::map<int, double> verify_seconds, double draft_seconds)
    : table_(std::move(verify_seconds)), draft_seconds_(draft_seconds), next_pause_(kFirstPause) {}

Planner::Planner(Engine& engine) : next_pause_(kFirstPause) {
  const int sequence = engine.add_sequence();
  const int room = std::min(engine.options().context, engine.options().max_rows);
  const int context = std::max(1, std::min(kMeasuredContext, room / 2));
  const auto token_at = [&](int i) { return Token(i * 31 % engine.config().vocabulary_size); };
  std::vector<Row> rows;
  std::vector<int> all;
  std::vector<int> layers;
  for (int step = 1; step <= engine.draft_steps(); ++step) {
    if (std::ranges::count(layers, engine.draft_layer(step)) == 0) {
      layers.push_back(engine.draft_layer(step));
    }
  }
  const auto chain = [&](int begin, int count) {
    rows.clear();
    all.clear();
    for (int i = 0; i < count; ++i) {
      rows.push_back({.sequence = sequence,
                      .position = begin + i,
                      .parent = i == 0 ? kContext : i - 1,
                      .token = token_at(begin + i)});
      all.push_back(i);
    }
  };
  chain(0, context);
  engine.forward(rows, layers);
  std::vector<std::vector<float>> sources;
  for (int step = 1; step <= engine.draft_steps(); ++step) {
    const std::span<const float> h = engine.hidden(context - 1, engine.draft_layer(step));
    sources.emplace_back(h.begin(), h.end());
  }
  engine.commit(sequence, all);
  for (const int count : kMeasuredRows) {
    if (context + count > room) break;
    chain(context, count);
    table_[count] = best_seconds([&] {
      engine.forward(rows, layers);
      engine.best_tokens(all, 1);
    });
  }
  if (engine.draft_steps() == 0) {
    engine.remove_sequence(sequence);
    return;
  }
  rows.clear();
  all.clear();
  for (int step = 1; step <= engine.draft_steps(); ++step) {
    rows.push_back({.sequence = sequence,
                    .position = context + step - 1,
                    .parent = step == 1 ? kContext : step - 2,
                    .step = step,
                    .source = sources[step - 1]});
    all.push_back(step - 1);
  }
  draft_seconds_ = best_seconds([&] {
    engine.forward(rows);
    engine.propose(all);
    build_draft_tree(engine.draft_steps(), kMostNodes, /*root=*/0,
                     [&](int step, std::span<const Token> previous) {
                       return engine.drafts_behind(step, previous);
                     });
  });
  engine.remove_sequence(sequence);
}

double Planner::verify_seconds(int rows) const {
  const auto above = table_.lower_bound(rows);
  if (above == table_.end()) {
    const auto& [most, seconds] = *table_.rbegin();
    return drift_ * seconds * rows / most;
  }
  if (above->first == rows || above == table_.begin()) return drift_ * above->second;
  const auto below = std::prev(above);
  const double share = static_cast<double>(rows - below->first) / (above->first - below->first);
  return drift_ * (below->second + share * (above->second - below->second));
}

bool Planner::drafts(const DraftTree& at_hand) const {
  if (pause_ > 0) return false;
  // A long match that promises more than drafting has given lately makes pseudo rows pointless.
  double tokens = 1;
  for (int nodes = 1; nodes <= std::ssize(at_hand) && rate_ > 0; ++nodes) {
    tokens += calibration_ * std::exp(double{at_hand[nodes - 1].log_probability});
    if (tokens / verify_seconds(nodes + 1) > rate_) return false;
  }
  return true;
}

int Planner::nodes_worth_verifying(const DraftTree& tree) const {
  int best = 0;
  double best_rate = 0;
  double tokens = 1;
  for (int nodes = 0; nodes <= std::ssize(tree); ++nodes) {
    if (nodes > 0) tokens += calibration_ * std::exp(double{tree[nodes - 1].log_probability});
    const double rate = tokens / (verify_seconds(nodes + 1) + (pause_ == 0 ? draft_seconds_ : 0));
    if (rate > best_rate) {
      best_rate = rate;
      best = nodes;
    }
  }
  return best;
}

void Planner::observe(int nodes, double expected, int accepted, double verify, bool drafted,
                      double draft) {
  drift_ += kWeight * drift_ * (std::clamp(verify / verify_seconds(nodes + 1), 0.5, 2.0) - 1);
  if (nodes > 0) {
    // Steps that expect much say more about the ratio.
    const double seen = (accepted - calibration_ * expected) / std::max(expected, 0.5);
    calibration_ = std::clamp(calibration_ + kWeight * seen, 0.25, 2.0);
  }
  if (drafted) draft_seconds_ += kWeight * (std::min(draft, 2 * draft_seconds_) - draft_seconds_);

  if (pause_ > 0) {
    if (--pause_ == 0) {
      trial_ = 0;
      profit_ = 0;
    }
    return;
  }
  if (!drafted || nodes == 0) return;
  // By what was to be expected: what came varies too much from step to step.
  const double rate = (1 + calibration_ * expected) / (verify + draft);
  rate_ = rate_ == 0 ? rate : rate_ + kWeight * (rate - rate_);
  const double profit = rate * verify_seconds(1) - 1;
  ++trial_;
  profit_ += std::max(kWeight, 1.0 / trial_) * (profit - profit_);
  if (trial_ >= kTrialSteps && profit_ < 0) {
    pause_ = next_pause_;
    next_pause_ = std::min(2 * next_pause_, kLongestPause);
  } else if (trial_ == 4 * kTrialSteps) {
    next_pause_ = kFirstPause;
  }
}

}  // namespace firp
