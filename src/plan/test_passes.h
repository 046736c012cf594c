#pragma once

#include <span>
#include <vector>

#include "plan/planner.h"

namespace firp {

// Passes of one sequence alone.

inline int nodes_worth_verifying(const Planner& planner, const Plan& plan, const DraftTree& tree,
                                 int context) {
  const Planner::Candidate only = {plan, tree, context};
  return planner.nodes_worth_verifying({&only, 1}, {}, kMostPlannedNodes).front();
}

inline void observe_pass(Planner& planner, Plan& plan, const DraftTree& tree,
                         std::span<const int> accepted, double seconds, int context) {
  const Planner::Verified only = {plan, tree, {accepted.begin(), accepted.end()}, context};
  planner.observe_pass({&only, 1}, {}, seconds);
}

inline bool decide(Planner& planner, Plan& plan, const DraftTree& at_hand, int context) {
  const Planner::Draftable only = {plan, at_hand, context};
  return planner.decide({&only, 1}).front();
}

inline void observe_drafting(Planner& planner, Plan& plan, double seconds) {
  Plan* const only = &plan;
  planner.observe_drafting({&only, 1}, seconds);
}

}  // namespace firp
