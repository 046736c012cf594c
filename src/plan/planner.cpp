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

/// 0 where nothing is known yet.
int best_steps(const Plan& plan) {
  const auto best = std::ranges::max_element(plan.step_rates);
  return best == plan.step_rates.end() ? 0 : static_cast<int>(best - plan.step_rates.begin()) + 1;
}

}  // namespace

Planner::Planner(PassCosts costs, bool follow)
    : costs_(std::move(costs)), drifts_(follow), follow_(follow) {}

/// Of the prefix of `tree` that gives most tokens a second, in a pass that pseudo rows draft for or
/// not, with `draft_seconds` on top.
double Planner::best_rate(const Plan& plan, const DraftTree& tree, int context, bool drafted,
                          double draft_seconds, int* nodes) const {
  double best = 0;
  double tokens = 1;
  for (int count = 0; count <= std::ssize(tree); ++count) {
    if (count > 0) tokens += plan.calibration.expected_tokens(tree[count - 1]);
    const double rate = tokens / (verify_seconds(count + 1, context, drafted) + draft_seconds);
    if (rate > best) {
      best = rate;
      *nodes = count;
    }
  }
  return best;
}

int Planner::nodes_worth_verifying(const Plan& plan, const DraftTree& tree, int context) const {
  int nodes = 0;
  best_rate(plan, tree, context, plan.next.drafted, plan.trial.pause == 0 ? draft_seconds(plan) : 0,
            &nodes);
  return nodes;
}

void Planner::observe_pass(Plan& plan, const DraftTree& tree, std::span<const int> accepted,
                           double seconds, int context) {
  const int rows = static_cast<int>(tree.size()) + 1;
  // By what was to be expected: what came varies too much from step to step.
  const double tokens = plan.calibration.expected_tokens(tree);
  drifts_.observe(rows, plan.next.drafted, seconds / costs_.verify(rows, context));
  plan.calibration.observe(tree, accepted);
  plan.undrafted_run = plan.next.drafted ? 0 : plan.undrafted_run + 1;
  if (plan.trial.pause > 0) observe_pause(plan, rows, seconds, context);
  if (plan.next.drafted) {
    if (plan.next.alone) learn_steps(plan, tree, context);
    observe_trial(plan, rows, tokens, context);
    plan.next.drafted = false;
  }
  latest_ = plan;
  forget_next(latest_);
}

/// A pass within a pause.
void Planner::observe_pause(Plan& plan, int rows, double seconds, int context) const {
  Plan::Trial& trial = plan.trial;
  // Where others drafted meanwhile, it is not this trial that plain passes have to settle from.
  const bool settles = plan.undrafted_run <= std::min(Drifts::kSettling, drifts_.undrafted_run());
  if (follow_ && settles && rows == 1) {
    trial.settling_ratios += seconds / costs_.verify(rows, context);
    ++trial.settling_passes;
  }
  // Later passes are of another moment: they say nothing of how those took longer.
  if (plan.undrafted_run <= kSettled) trial.pause = pause_for_trial(plan, context);
  // Held against a time that has turned out to be too short, the trial may have paid after all.
  // Where that time had been seen just before, most of such a change is noise.
  const double plain_drift = drifts_.ratio(1, false) / trial.plain_ratio;
  const double enough = trial.was_blind ? 1 : 1 + Drifts::kExpectedShare;
  const bool paid = plan.undrafted_run >= kSettled && (1 + plan.profit) * plain_drift > enough;
  if (paid || plan.undrafted_run >= trial.pause) trial.pause = trial.steps = 0;
}

/// A pass that was drafted for, and should have given so many `tokens`.
void Planner::observe_trial(Plan& plan, int rows, double tokens, int context) const {
  Plan::Trial& trial = plan.trial;
  const double step_seconds = verify_seconds(rows, context, true) + draft_seconds(plan);
  const double rate = tokens / step_seconds;
  const double weight = std::max(kAverageWeight, 1.0 / ++trial.steps);
  plan.rate += weight * (rate - plan.rate);
  plan.profit += weight * (rate / plan.next.rate_without - 1 - plan.profit);
  if (trial.steps < kTrialSteps || plan.profit >= 0) return;
  trial.plain_ratio = drifts_.ratio(1, false);
  trial.was_blind = drifts_.plain_is_unseen();
  trial.lost_seconds = kTrialSteps * step_seconds * -plan.profit;
  trial.settling_ratios = trial.settling_passes = 0;
  trial.pause = pause_for_trial(plan, context);
}

/// Steps from the last trial to the next, by what it lost, and the passes behind it until they had
/// settled.
int Planner::pause_for_trial(const Plan& plan, int context) const {
  const Plan::Trial& trial = plan.trial;
  const double unsettled = trial.settling_ratios - trial.settling_passes * drifts_.ratio(1, false);
  const double lost = trial.lost_seconds + std::max(0.0, unsettled) * costs_.verify(1, context);
  const double steps = lost / (kTrialShare * verify_seconds(1, context, false));
  return static_cast<int>(std::clamp<double>(steps, kSettled, kLongestPause));
}

bool Planner::decide(Plan& plan, const DraftTree& at_hand, int context) const {
  if (plan.trial.pause > 0 || drifts_.plain_is_due()) return false;
  int nodes = 0;
  Plan::NextPass& next = plan.next;
  next.rate_without = best_rate(plan, at_hand, context, false, 0, &nodes);
  // A long match that promises more than drafting has given lately makes pseudo rows pointless.
  next.drafted = nodes == 0 || plan.rate == 0 || next.rate_without <= plan.rate;
  if (next.drafted) {
    next.alone = at_hand.empty();
    next.steps = plan.drafts++ % kFarDrafts == 0 ? 0 : best_steps(plan);
  }
  return next.drafted;
}

int Planner::steps(const Plan& plan) const {
  const int most = static_cast<int>(costs_.draft_seconds.size());
  return plan.next.steps == 0 || most <= 1 ? INT_MAX : plan.next.steps;
}

double Planner::draft_seconds(const Plan& plan) const {
  const std::vector<double>& seconds = costs_.draft_seconds;
  if (seconds.empty()) return 0;
  return seconds[std::min<std::size_t>(steps(plan), seconds.size()) - 1];
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
    int nodes = 0;
    const double rate =
        best_rate(plan, shallow, context, true, costs_.draft_seconds[steps - 1], &nodes);
    double& average = plan.step_rates[steps - 1];
    const double weight = average == 0 ? 1 : plan.next.steps == 0 ? kFarWeight : kAverageWeight;
    average += weight * (rate - average);
  }
}

void Planner::observe_drafting(const Plan& plan, double seconds) {
  if (costs_.draft_seconds.empty()) costs_.draft_seconds = {seconds};
  if (!follow_) return;
  const double drift =
      1 + kAverageWeight * (std::clamp(seconds / draft_seconds(plan), 0.5, 2.0) - 1);
  for (double& of_steps : costs_.draft_seconds) of_steps *= drift;
}

}  // namespace firp
