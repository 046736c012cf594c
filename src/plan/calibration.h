#pragma once

#include <array>
#include <span>

#include "draft/draft_tree.h"

namespace firp {

/// How far the probabilities of drafts are true: accepted nodes over expected ones. A node's ratio
/// is that of nodes about as likely, times that of nodes as deep; nodes of the text and of the
/// method count apart. Old ones fade.
class Calibration {
 public:
  /// How often nodes like this one are right, over how often they say.
  double ratio(const DraftNode& node) const;

  double expected_tokens(const DraftNode& node) const;  ///< 0 .. 1, about
  /// Tokens that a pass which verifies `tree` should give.
  double expected_tokens(const DraftTree& tree) const;

  /// A pass verified `tree`, and those of its nodes were right.
  void observe(const DraftTree& tree, std::span<const int> accepted);

 private:
  // All begins as if so many tokens had been expected and had come.
  static constexpr double kPriorTokens = 2;
  static constexpr int kLikelihoods = 4, kDepths = 4;  ///< that are told apart

  struct Tokens {
    double expected = kPriorTokens, accepted = kPriorTokens;
    double ratio() const { return accepted / expected; }
    void fade();
  };
  /// Of the nodes of one source.
  struct Source {
    std::array<Tokens, kLikelihoods> likelihoods;
    std::array<Tokens, kDepths> depths;  ///< the last one of all deeper ones, too
  };

  std::array<Source, 2> sources_;  ///< [from_text]
};

}  // namespace firp
