#pragma once

#include <array>
#include <span>

#include "draft/draft_tree.h"

namespace firp {

/// How far the probabilities of drafts are true: accepted nodes over expected ones, for likely and
/// unlikely nodes apart, and for those of the text and of the method. Old ones fade.
class Calibration {
 public:
  Calibration();

  /// Accepted nodes seen / expected, for nodes of about this probability, and of this source.
  double ratio(double probability, bool from_text = false) const;

  double expected_tokens(const DraftNode& node) const;  ///< 0 .. 1, about
  /// Tokens that a pass which verifies `tree` should give.
  double expected_tokens(const DraftTree& tree) const;

  /// A pass verified `tree`, and those of its nodes were right.
  void observe(const DraftTree& tree, std::span<const int> accepted);

 private:
  /// Ranges of probability that are calibrated apart, for each of two sources.
  static constexpr int kRanges = 2 * 4;
  static int range_of(double probability, bool from_text);

  std::array<double, kRanges> expected_, accepted_;
};

}  // namespace firp
