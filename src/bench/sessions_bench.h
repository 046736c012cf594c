#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "decode/batch_decoder.h"

namespace firp {

struct SessionsBenchOptions {
  std::vector<int> sessions = {1, 2, 4, 8, 16};
  int tokens = 128;  ///< of each, decoded while all decode
  int rounds = 5;    ///< medians of so many are taken
};

/// What so many sessions that share their passes came to.
struct SessionsResult {
  int sessions = 0;
  double pass_seconds = 0;  ///< T(n): a pass and its head, a row of each, each on its own context
  double plain_tokens_per_second = 0;    ///< of all together
  double drafted_tokens_per_second = 0;  ///< 0: no drafts
  double tokens_per_forward = 0;         ///< of a session, with drafts
  bool same_text = true;                 ///< with drafts, and as a session alone
};

/// Decodes `prompts`, again and again, in several sessions at once, without drafts and with those
/// of `options`; in turn, so that all see the same machine. Reading is not counted. The texts go on
/// past their ends. `plain` has no planner, and both have the same engine. Empty where `go_on` said
/// false.
std::vector<SessionsResult> bench_sessions(BatchDecoder& plain, BatchDecoder& drafted,
                                           const DecodeOptions& options,
                                           const std::vector<std::vector<Token>>& prompts,
                                           const SessionsBenchOptions& bench,
                                           const std::function<bool(int done, int total)>& go_on);

std::string sessions_table(const std::vector<SessionsResult>& results);
nlohmann::ordered_json sessions_json(nlohmann::ordered_json machine,
                                     const std::vector<SessionsResult>& results);

}  // namespace firp
