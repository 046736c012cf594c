#include "plan/planner.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <iterator>
#include <utility>

namespace firp {
namespace {

// Drafting that loses is stopped after so many steps, and tried again after as many plain ones as
// make what the trials lose this share of the time: soon where little is lost, seldom where text
// cannot be predicted. What plain passes behind a trial take longer until they have settled is
// counted as lost by it.
constexpr int kTrialSteps = 3;
constexpr double kTrialShare = 0.01;
constexpr int kLongestPause = 256;
constexpr int kSettled = Drifts::kSettling + Drifts::kSeen;  // passes behind a trial
// The first draft, and one in so many later on, goes as far ahead as can be: of steps that are not
// drafted nothing is learnt. So few must count for more.
constexpr int kFarDrafts = 32;
constexpr double kFarWeight = 1.0 / 4;

/// Rows of a pass in which no sequence verifies drafts.
int plain_rows(const Plan& plan) { return plan.company.sequences + 1; }

/// 0 where nothing is known yet.
int best_steps(const Plan& plan) {
  const auto best = std::ranges::max_element(plan.step_rates);
  return best == plan.step_rates.end() ? 0 : static_cast<int>(best - plan.step_rates.begin()) + 1;
}

}  // namespace

Planner::Planner(PassCosts costs, bool follow)
    : costs_(std::move(costs)), drifts_(follow), follow_(follow) {
  joint_drafting_.fill(1);
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

std::vector<int> Planner::nodes_worth_verifying(std::span<const Candidate> sequences,
                                                const PassSize& reading, int most) const {
  PassSize size = reading;
  double tokens = static_cast<double>(sequences.size());
  double drafting = 0;
  bool drafted = false;
  for (const Candidate& each : sequences) {
    size.add(1, each.context);
    drafted = drafted || each.plan.next.drafted;
    if (each.plan.trial.pause == 0) drafting += draft_seconds(each.plan);
  }
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
  double best_rate = tokens / (verify_seconds(size, drafted) + drafting);
  for (int taken = 0; taken < most; ++taken) {
    const auto next = std::ranges::max_element(promises);
    if (next == promises.end() || *next < 0) break;
    const std::size_t i = next - promises.begin();
    tokens += promises[i];
    size.add(1, sequences[i].context);
    ++nodes[i];
    promises[i] = promise(i);
    const double rate = tokens / (verify_seconds(size, drafted) + drafting);
    if (rate > best_rate) {
      best_rate = rate;
      best = nodes;
    }
  }
  return best;
}

void Planner::observe_pass(std::span<const Verified> sequences, const PassSize& reading,
                           double seconds) {
  PassSize size = reading;
  bool drafted = false;
  std::vector<double> tokens;  // by what was to be expected: what came varies too much
  double all_tokens = 0, all_draft_seconds = 0;
  for (const Verified& each : sequences) {
    size.add(static_cast<int>(each.tree.size()) + 1, each.context);
    drafted = drafted || each.plan.next.drafted;
    tokens.push_back(each.plan.calibration.expected_tokens(each.tree));
    all_tokens += tokens.back();
    if (each.plan.next.drafted) all_draft_seconds += draft_seconds(each.plan);
  }
  const bool plain = size.rows == std::ssize(sequences);
  const double ratio = seconds / costs_.verify(size);
  if (reading.rows == 0) drifts_.observe(size.rows, drafted, plain, ratio);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto& [plan, tree, accepted, context] = sequences[i];
    plan.company = {.sequences = static_cast<int>(sequences.size()) - 1,
                    .size = size.with(-static_cast<int>(tree.size()) - 1, context),
                    .tokens = all_tokens - tokens[i],
                    .draft_seconds = all_draft_seconds};
    if (plan.next.drafted) plan.company.draft_seconds -= draft_seconds(plan);
    plan.calibration.observe(tree, accepted);
    plan.undrafted_run = plan.next.drafted ? 0 : plan.undrafted_run + 1;
    if (plan.trial.pause > 0 && reading.rows == 0) observe_pause(plan, plain, ratio, context);
    if (reading.rows == 0) {
      learn(plan, tree, context, tokens[i]);
    } else {  // which makes all dear: nothing to learn from
      plan.next.drafted = false;
    }
  }
  if (sequences.empty()) return;
  latest_ = sequences.back().plan;
  forget_next(latest_);
}

/// Of a pass that should have given so many `tokens` of the sequence.
void Planner::learn(Plan& plan, const DraftTree& tree, int context, double tokens) {
  // What pays beside twice as many others, or half as many, is another question.
  const int now = plan.company.sequences + 1, before = plan.known_company + 1;
  if (now >= 2 * before || 2 * now <= before) {
    plan.known_company = plan.company.sequences;
    plan.trial = {};
    plan.rate = plan.profit = 0;
    plan.step_rates.clear();
    plan.next.drafted = false;  // what was expected of it was expected of other company
    return;
  }
  if (!plan.next.drafted) return;
  if (plan.next.alone) learn_steps(plan, tree, context);
  observe_trial(plan, static_cast<int>(tree.size()) + 1, tokens, context);
  plan.next.drafted = false;
}

/// A pass within a pause, which took `ratio` of what was measured.
void Planner::observe_pause(Plan& plan, bool plain, double ratio, int context) const {
  Plan::Trial& trial = plan.trial;
  // Where others drafted meanwhile, it is not this trial that plain passes have to settle from.
  const bool settles = plan.undrafted_run <= std::min(Drifts::kSettling, drifts_.undrafted_run());
  if (follow_ && settles && plain) {
    trial.settling_ratios += ratio;
    ++trial.settling_passes;
  }
  // Later passes are of another moment: they say nothing of how those took longer.
  if (plan.undrafted_run <= kSettled) trial.pause = pause_for_trial(plan, context);
  // Held against a time that has turned out to be too short, the trial may have paid after all.
  // Where that time had been seen just before, most of such a change is noise.
  const double plain_drift = drifts_.ratio(plain_rows(plan), false) / trial.plain_ratio;
  const double enough = trial.was_blind ? 1 : 1 + Drifts::kExpectedShare;
  const bool paid = plan.undrafted_run >= kSettled && (1 + plan.profit) * plain_drift > enough;
  if (paid || plan.undrafted_run >= trial.pause) trial.pause = trial.steps = 0;
}

/// A pass that was drafted for, and should have given so many `tokens`.
void Planner::observe_trial(Plan& plan, int rows, double tokens, int context) const {
  Plan::Trial& trial = plan.trial;
  const Company& company = plan.company;
  const Plan::NextPass& next = plan.next;
  const double step_seconds = verify_seconds(company.size.with(rows, context), true) +
                              company.draft_seconds + draft_seconds(plan);
  const double rate = (company.tokens + tokens) / step_seconds;
  const double seconds_without =
      verify_seconds(company.size.with(next.rows_without, context), false) + company.draft_seconds;
  const double rate_without = (company.tokens + next.tokens_without) / seconds_without;
  const double weight = std::max(kAverageWeight, 1.0 / ++trial.steps);
  plan.rate += weight * (rate / plain_rate(plan, context) - plan.rate);
  plan.profit += weight * (rate / rate_without - 1 - plan.profit);
  if (trial.steps < kTrialSteps || plan.profit >= 0) return;
  trial.plain_ratio = drifts_.ratio(plain_rows(plan), false);
  trial.was_blind = drifts_.plain_is_unseen();
  trial.lost_seconds = kTrialSteps * step_seconds * -plan.profit;
  trial.settling_ratios = trial.settling_passes = 0;
  trial.pause = pause_for_trial(plan, context);
}

/// Steps from the last trial to the next, by what it lost, and the passes behind it until they had
/// settled.
int Planner::pause_for_trial(const Plan& plan, int context) const {
  const Plan::Trial& trial = plan.trial;
  const PassSize plain = plan.company.size.with(1, context);
  const double unsettled =
      trial.settling_ratios - trial.settling_passes * drifts_.ratio(plain_rows(plan), false);
  const double lost = trial.lost_seconds + std::max(0.0, unsettled) * costs_.verify(plain);
  const double steps = lost / (kTrialShare * verify_seconds(plain, false));
  return static_cast<int>(std::clamp<double>(steps, kSettled, kLongestPause));
}

bool Planner::decide(Plan& plan, const DraftTree& at_hand, int context) const {
  if (plan.trial.pause > 0 || drifts_.plain_is_due()) return false;
  Plan::NextPass& next = plan.next;
  const Prefix without = best_prefix(plan, at_hand, context, false, 0);
  // A long match that promises more than drafting has given lately makes pseudo rows pointless.
  next.drafted = without.nodes == 0 || plan.rate == 0 || without.rate <= plan.rate;
  if (next.drafted) {
    next.tokens_without = without.tokens;
    next.rows_without = without.nodes + 1;
    next.alone = at_hand.empty();
    next.steps = plan.drafts++ % kFarDrafts == 0 ? 0 : best_steps(plan);
  }
  return next.drafted;
}

int Planner::steps(const Plan& plan) const {
  const int most = static_cast<int>(costs_.draft_seconds.size());
  return plan.next.steps == 0 || most <= 1 ? INT_MAX : plan.next.steps;
}

/// Of a drafting pass for so many sequences. That more rows cost what they cost in any pass is a
/// first guess.
double Planner::joint_draft_seconds(int sequences, int steps) const {
  const std::vector<double>& seconds = costs_.draft_seconds;
  if (seconds.empty() || sequences == 0) return 0;
  steps = std::min(steps, static_cast<int>(seconds.size()));
  const double one = seconds[steps - 1];
  if (sequences == 1) return one;
  return one * costs_.verify(sequences * steps, 0) / costs_.verify(steps, 0) *
         joint_drafting_[std::min(sequences, kMostAnchors)];
}

double Planner::draft_seconds(const Plan& plan, int steps) const {
  const int sequences = plan.company.sequences + 1;  // where drafting pays, it pays for all
  return joint_draft_seconds(sequences, steps) / sequences;
}

/// `tree` was drafted for steps(): what it would have been with fewer is known, too.
void Planner::learn_steps(Plan& plan, const DraftTree& tree, int context) const {
  plan.step_rates.resize(costs_.draft_seconds.size());
  DraftTree shallow;
  for (int steps = std::min<int>(this->steps(plan), std::ssize(plan.step_rates)); steps > 0;
       --steps) {
    shallow.clear();
    for (const DraftNode& node : tree) {
      if (node.depth <= steps) shallow.push_back(node);
    }
    const double rate = best_prefix(plan, shallow, context, true, draft_seconds(plan, steps)).rate;
    double& average = plan.step_rates[steps - 1];
    const double weight = average == 0 ? 1 : plan.next.steps == 0 ? kFarWeight : kAverageWeight;
    average += weight * (rate - average);
  }
}

void Planner::observe_drafting(std::span<Plan* const> plans, double seconds) {
  const auto sequences = static_cast<int>(plans.size());
  if (costs_.draft_seconds.empty()) costs_.draft_seconds = {seconds / sequences};
  if (!follow_) return;
  int most_steps = 0;
  for (const Plan* const plan : plans) most_steps = std::max(most_steps, steps(*plan));
  const double expected = joint_draft_seconds(sequences, most_steps);
  const double drift = 1 + kAverageWeight * (std::clamp(seconds / expected, 0.5, 2.0) - 1);
  if (sequences > 1) {
    joint_drafting_[std::min(sequences, kMostAnchors)] *= drift;
  } else {
    for (double& of_steps : costs_.draft_seconds) of_steps *= drift;
  }
}

}  // namespace firp
