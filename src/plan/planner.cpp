#include "plan/planner.h"

#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <iterator>
#include <numeric>
#include <utility>

namespace firp {
namespace {

// The first draft, and one in so many later on, goes as far ahead as can be: of steps that are not
// drafted nothing is learnt. So few must count for more.
constexpr int kFarDrafts = 32;
constexpr double kFarWeight = 1.0 / 4;

}  // namespace

Planner::Planner(PassCosts costs, bool follow)
    : costs_(std::move(costs)), drifts_(costs_, follow), follow_(follow) {
  joint_drafting_.fill(1);
  for (int company = 0; company < kCompanies; ++company) latest_[company].company_kind = company;
}

int Planner::company_of(int sequences) {
  return std::clamp<int>(std::bit_width(static_cast<unsigned>(sequences)) - 1, 0, kCompanies - 1);
}

/// The prefix of `tree` that gives most tokens a second, in a pass that pseudo rows draft for or
/// not, with `draft_seconds` on top.
Planner::Prefix Planner::best_prefix(const Plan& plan, const DraftTree& tree, int context,
                                     bool drafted, double draft_seconds) const {
  const Company& company = plan.company;
  const double plain = plain_rate(plan, context);
  Prefix best;
  double tokens = 1;
  for (int count = 0; count <= std::ssize(tree); ++count) {
    if (count > 0) tokens += plan.calibration.expected_tokens(tree[count - 1]);
    const double seconds = verify_seconds(company.size.with(count + 1, context), drafted) +
                           company.draft_seconds + draft_seconds;
    const double rate = (company.tokens + tokens) / seconds / plain;
    if (rate > best.rate) best = {count, tokens, rate};
  }
  return best;
}

/// Tokens a second of all where this sequence has no drafts.
double Planner::plain_rate(const Plan& plan, int context) const {
  const Company& company = plan.company;
  return (company.tokens + 1) /
         (verify_seconds(company.size.with(1, context), false) + company.draft_seconds);
}

PlainPasses Planner::plain_passes(const PassSize& size, int sequences) const {
  return {.measured_seconds = costs_.verify(size),
          .drift = drifts_.ratio(sequences, false),
          .drift_is_old = drifts_.plain_is_unseen(),
          .run = drifts_.undrafted_run(),
          .settling = Drifts::settling(costs_),
          .sequences = sequences};
}

std::vector<int> Planner::nodes_worth_verifying(std::span<const Candidate> sequences,
                                                const PassSize& reading, int most) const {
  PassSize size = reading;
  double tokens = static_cast<double>(sequences.size());
  bool drafted = false;
  std::vector<const Plan*> drafting;  // for the pass after this one
  for (const Candidate& each : sequences) {
    size.add(1, each.context);
    drafted = drafted || each.plan.next.drafted;
    if (!each.plan.trial.pauses()) drafting.push_back(&each.plan);
  }
  const auto count = static_cast<int>(sequences.size());
  if (count > 1 && together_[company_of(count)].pauses()) drafting.clear();
  const double drafting_seconds = draft_seconds(drafting);
  // Node by node, of any tree the one that promises most.
  std::vector<int> nodes(sequences.size(), 0), best = nodes;
  const auto promise = [&](std::size_t i) {
    const Candidate& each = sequences[i];
    return nodes[i] == std::ssize(each.tree)
               ? -1
               : each.plan.calibration.expected_tokens(each.tree[nodes[i]]);
  };
  std::vector<double> promises(sequences.size());
  for (std::size_t i = 0; i < sequences.size(); ++i) promises[i] = promise(i);
  double best_rate = tokens / (verify_seconds(size, drafted) + drafting_seconds);
  for (int taken = 0; taken < most; ++taken) {
    const auto next = std::ranges::max_element(promises);
    if (next == promises.end() || *next < 0) break;
    const std::size_t i = next - promises.begin();
    tokens += promises[i];
    size.add(1, sequences[i].context);
    ++nodes[i];
    promises[i] = promise(i);
    const double rate = tokens / (verify_seconds(size, drafted) + drafting_seconds);
    if (rate > best_rate) {
      best_rate = rate;
      best = nodes;
    }
  }
  return best;
}

double Planner::observe_pass(std::span<const Verified> sequences, const PassSize& reading,
                             double seconds) {
  if (sequences.empty()) return 0;
  PassSize size = reading;
  std::vector<double> tokens;  // by what was to be expected: what came varies too much
  std::vector<Plan*> drafted;
  for (const Verified& each : sequences) {
    size.add(static_cast<int>(each.tree.size()) + 1, each.context);
    tokens.push_back(each.plan.calibration.expected_tokens(each.tree));
    if (each.plan.next.drafted) drafted.push_back(&each.plan);
  }
  const double all_tokens = std::accumulate(tokens.begin(), tokens.end(), 0.0);
  const double all_draft_seconds = draft_seconds(drafted);
  const bool plain = size.rows == std::ssize(sequences);
  const double expected_seconds = verify_seconds(size, !drafted.empty());
  const double ratio = seconds / costs_.verify(size);
  if (reading.rows == 0) drifts_.observe(size.rows, !drafted.empty(), plain, ratio);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto& [plan, tree, accepted, context] = sequences[i];
    const double own = plan.next.drafted ? own_draft_seconds(plan) : 0;
    plan.company = {.sequences = static_cast<int>(sequences.size()) - 1,
                    .size = size.with(-static_cast<int>(tree.size()) - 1, context),
                    .tokens = all_tokens - tokens[i],
                    .draft_seconds = std::max(0.0, all_draft_seconds - own)};
    plan.calibration.observe(tree, accepted);
  }
  if (reading.rows == 0) {  // which makes all dear: there is nothing to learn from that
    learn_together(sequences, size, all_tokens, plain, ratio);
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const auto& [plan, tree, accepted, context] = sequences[i];
      learn(plan, tree, context, tokens[i], plain, ratio);
    }
  }
  for (const Verified& each : sequences) each.plan.next.drafted = false;
  last_company_ = company_of(static_cast<int>(sequences.size()));
  const Plan& last = sequences.back().plan;
  if (last.company_kind == last_company_) {  // else a prompt was read, and nothing was learnt
    latest_[last_company_] = last;
    forget_next(latest_[last_company_]);
  }
  return expected_seconds;
}

/// Of a pass that should have given so many `tokens` of the sequence.
void Planner::learn(Plan& plan, const DraftTree& tree, int context, double tokens, bool plain,
                    double ratio) {
  const Company& company = plan.company;
  if (const int kind = company_of(company.sequences + 1); kind != plan.company_kind) {
    plan.company_kind = kind;
    plan.trial = latest_[kind].trial;
    plan.rate = latest_[kind].rate;
    plan.step_rates = latest_[kind].step_rates;
    plan.next = {};  // what was expected of it was expected of other company
  }
  const PlainPasses plainly = plain_passes(company.size.with(1, context), company.sequences + 1);
  if (!plan.next.drafted) {
    plan.trial.observe_undrafted(follow_ && plain, ratio, plainly);
    return;
  }
  if (plan.next.alone) learn_steps(plan, tree, context);
  const auto rows = static_cast<int>(tree.size()) + 1;
  const double seconds = verify_seconds(company.size.with(rows, context), true) +
                         company.draft_seconds + own_draft_seconds(plan);
  const double rate = (company.tokens + tokens) / seconds;
  const double seconds_without =
      verify_seconds(company.size.with(plan.next.rows_without, context), false) +
      company.draft_seconds;
  const double rate_without = (company.tokens + plan.next.tokens_without) / seconds_without;
  const double weight = plan.rate == 0 ? 1 : kAverageWeight;
  plan.rate += weight * (rate / plain_rate(plan, context) - plan.rate);
  plan.trial.observe_drafted(rate / rate_without - 1, seconds, plainly);
}

/// The same for all that shared the pass: what the first one's drafting costs is none's alone.
void Planner::learn_together(std::span<const Verified> sequences, const PassSize& size,
                             double tokens, bool plain, double ratio) {
  const auto count = static_cast<int>(sequences.size());
  if (count == 1) return;
  PassSize without, roots;
  double tokens_without = 0;
  std::vector<Plan*> drafted;
  for (const auto& [plan, tree, accepted, context] : sequences) {
    roots.add(1, context);
    const bool is_drafted = plan.next.drafted;
    without.add(is_drafted ? plan.next.rows_without : static_cast<int>(tree.size()) + 1, context);
    tokens_without +=
        is_drafted ? plan.next.tokens_without : plan.calibration.expected_tokens(tree);
    if (is_drafted) drafted.push_back(&plan);
    if (is_drafted && plan.next.steps == 0) return;
  }
  const PlainPasses plainly = plain_passes(roots, count);
  if (drafted.empty()) {
    together_[company_of(count)].observe_undrafted(follow_ && plain, ratio, plainly);
  } else if (drafted.size() > 1) {
    const double seconds = verify_seconds(size, true) + draft_seconds(drafted);
    const double rate_without = tokens_without / verify_seconds(without, false);
    together_[company_of(count)].observe_drafted(tokens / seconds / rate_without - 1, seconds,
                                                 plainly);
  }
}

std::vector<bool> Planner::decide(std::span<const Draftable> sequences) {
  const auto tries = [](const Draftable& each) { return each.plan.trial.begins(); };
  if (std::ranges::any_of(sequences, tries)) {
    for (const Draftable& each : sequences) each.plan.trial.join();
  }
  std::vector<bool> drafted(sequences.size(), false);
  if (sequences.empty()) return drafted;
  const int all = sequences.front().plan.company.sequences + 1;
  if (all > 1 && together_[company_of(all)].pauses()) return drafted;
  for (std::size_t i = 0; i < sequences.size(); ++i) drafted[i] = decide(sequences[i]);
  const auto together = static_cast<int>(std::ranges::count(drafted, true));
  if (together == 0) return drafted;
  // All draft as far ahead: one that goes further makes the pass longer for all.
  std::vector<double> rates(costs_.draft_seconds.size(), 0.0);
  bool far = drafts_++ % kFarDrafts == 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    if (!drafted[i]) continue;
    const std::vector<double>& own = sequences[i].plan.step_rates;
    for (std::size_t steps = 0; steps < own.size(); ++steps) rates[steps] += own[steps];
  }
  const auto best = std::ranges::max_element(rates);
  far = far || best == rates.end() || *best == 0;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    if (!drafted[i]) continue;
    sequences[i].plan.next.together = together;
    sequences[i].plan.next.steps = far ? 0 : static_cast<int>(best - rates.begin()) + 1;
  }
  return drafted;
}

bool Planner::decide(const Draftable& sequence) const {
  const auto& [plan, at_hand, context] = sequence;
  if (plan.trial.pauses() || drifts_.plain_is_due()) return false;
  Plan::NextPass& next = plan.next;
  const Prefix without = best_prefix(plan, at_hand, context, false, 0);
  // A long match that promises more than drafting has given lately makes pseudo rows pointless.
  next.drafted = without.nodes == 0 || plan.rate == 0 || without.rate <= plan.rate;
  if (next.drafted) {
    next.tokens_without = without.tokens;
    next.rows_without = without.nodes + 1;
    next.alone = at_hand.empty();
  }
  return next.drafted;
}

int Planner::steps(const Plan& plan) const {
  const int most = static_cast<int>(costs_.draft_seconds.size());
  return plan.next.steps == 0 || most <= 1 ? INT_MAX : plan.next.steps;
}

int Planner::known_steps(const Plan& plan) const {
  return std::min<int>(steps(plan), std::ssize(costs_.draft_seconds));
}

/// Of a drafting pass for so many sequences, with `rows` pseudo rows in all. That more rows cost
/// what they cost in any pass is a first guess.
double Planner::joint_draft_seconds(int sequences, int most_steps, int rows) const {
  const double one = costs_.draft_seconds[most_steps - 1];
  if (sequences == 1) return one;
  return one * costs_.verify(rows, 0) / costs_.verify(most_steps, 0) *
         joint_drafting_[std::min(sequences, kMostAnchors)];
}

double Planner::draft_seconds(std::span<const Plan* const> plans) const {
  if (plans.empty() || costs_.draft_seconds.empty()) return 0;
  int most_steps = 0, rows = 0;
  for (const Plan* const plan : plans) {
    const int own = known_steps(*plan);
    most_steps = std::max(most_steps, own);
    rows += own;
  }
  return joint_draft_seconds(static_cast<int>(plans.size()), most_steps, rows);
}

/// What drafting takes longer where it is for this sequence, too.
double Planner::own_draft_seconds(const Plan& plan) const {
  if (costs_.draft_seconds.empty()) return 0;
  const int steps = known_steps(plan);
  const int together = plan.next.together;
  const double all = joint_draft_seconds(together, steps, together * steps);
  const int others = together - 1;
  return others == 0 ? all
                     : std::max(0.0, all - joint_draft_seconds(others, steps, others * steps));
}

/// `tree` was drafted for steps(): what it would have been with fewer is known, too. Since all
/// draft as far ahead, it counts what they would have if their trees were like this one.
void Planner::learn_steps(Plan& plan, const DraftTree& tree, int context) const {
  plan.step_rates.resize(costs_.draft_seconds.size());
  const int together = plan.next.together;
  const double plain = verify_seconds(PassSize().with(together, context), false);
  for (int steps = known_steps(plan); steps > 0; --steps) {
    const double drafting = joint_draft_seconds(together, steps, together * steps);
    double tokens = 1, best = 0;
    int rows = 0;
    for (int node = -1; node < std::ssize(tree); ++node) {
      if (node >= 0 && tree[node].depth > steps) continue;
      if (node >= 0) tokens += plan.calibration.expected_tokens(tree[node]);
      rows += together;
      const double seconds = verify_seconds(PassSize().with(rows, context), true) + drafting;
      best = std::max(best, tokens * plain / seconds);
    }
    double& average = plan.step_rates[steps - 1];
    const double weight = average == 0 ? 1 : plan.next.steps == 0 ? kFarWeight : kAverageWeight;
    average += weight * (best - average);
  }
}

void Planner::observe_drafting(std::span<Plan* const> plans, double seconds) {
  const auto sequences = static_cast<int>(plans.size());
  if (costs_.draft_seconds.empty()) costs_.draft_seconds = {seconds / sequences};
  if (!follow_) return;
  const double expected = draft_seconds(plans);
  const double drift = 1 + kAverageWeight * (std::clamp(seconds / expected, 0.5, 2.0) - 1);
  if (sequences > 1) {
    joint_drafting_[std::min(sequences, kMostAnchors)] *= drift;
  } else {
    for (double& of_steps : costs_.draft_seconds) of_steps *= drift;
  }
}

}  // namespace firp
