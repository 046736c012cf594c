#pragma once

#include <memory>
#include <span>
#include <vector>

#include "engine/row.h"

namespace firp {

class DraftHead;

/// A token that pseudo rows propose, and the logarithm of the probability that they give it.
struct Candidate {
  Token token;
  float log_probability;
};

/// What the pseudo rows of one anchor propose, steps 1 .. steps(). It is a value of its own: it
/// stays good whatever passes follow, as long as the engine is there.
class Proposal {
 public:
  /// `best`: of each step the kRankedCandidates best tokens that may be drafted, with their
  /// log_sum. `head` corrects them by the token before; nullptr: nothing does. `inner`: what it
  /// made of the steps' final states (DraftHead::take_states).
  explicit Proposal(std::vector<BestTokens> best, std::shared_ptr<DraftHead> head = nullptr,
                    std::vector<float> inner = {});

  int steps() const { return static_cast<int>(best_.size()); }

  /// Candidates for the token of a step, best first, kRankedCandidates at most: a list behind each
  /// of the tokens `previous` of the step before (of step 1: the model's own token). Without a
  /// sequential head the lists are the same.
  std::vector<std::vector<Candidate>> behind(int step, std::span<const Token> previous) const;

 private:
  std::vector<BestTokens> best_;  ///< [steps]
  std::shared_ptr<DraftHead> head_;
  std::vector<float> inner_;  ///< [steps x rank]
};

}  // namespace firp
