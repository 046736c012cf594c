#pragma once

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "bench/report.h"

namespace firp {

/// A figure of the same method on the same prompts in two results.
struct Change {
  double before = 0;
  double after = 0;
  /// How much of the relative change may be chance (99 %): the jackknife over prompts of after /
  /// before; for tokens per second also twice the spread over the repeats of both. None for one
  /// prompt.
  std::optional<double> noise;

  double relative() const { return after / before - 1; }
  bool beyond_noise() const { return noise && std::abs(relative()) > *noise; }
};

struct Comparison {
  std::string category;
  std::string method;
  int prompts = 0;  ///< that both results have
  Change tokens_per_second;
  Change tokens_per_forward;
  std::optional<Change> speedup_over_plain;  ///< where both ran plain decoding
};

/// By category and method, of what both have, in the order of `after`. An Error where that is
/// nothing.
std::vector<Comparison> compare_reports(const BenchReport& before, const BenchReport& after);

/// The table, what is beyond the noise in words, and in what else the two runs differ.
std::string comparison_text(const BenchReport& before, const BenchReport& after);

}  // namespace firp
