#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bench/prompts.h"
#include "bench/statistics.h"
#include "chat/chat_template.h"
#include "decode/batch_decoder.h"
#include "decode/session.h"

namespace firp {

/// What was drafted, and what the planner expected of it: to be held against tokens and seconds.
struct DraftPlan {
  long long nodes = 0;            ///< drafted tokens that were verified
  long long drafting_passes = 0;  ///< short passes of pseudo rows alone
  double expected_tokens = 0;     ///< of all forwards; both 0 without a planner
  double expected_seconds = 0;

  DraftPlan& operator+=(const DraftPlan& other);
};

/// What one method did with one prompt, all turns together.
struct BenchRun {
  std::vector<Token> tokens;  ///< of all answers, each closed by kNoToken
  long long decoded = 0;      ///< tokens, the end tokens included
  long long forwards = 0;
  double prefill_seconds = 0;
  double seconds = 0;  ///< decoding alone
  DraftPlan plan = {};
};

/// A way to decode. `run` answers all turns of a prompt from scratch, with at most `max_tokens` a
/// turn, and returns early (with anything) once `stop` is true. The method named "plain" is what
/// the others are compared with.
struct BenchMethod {
  std::string name;
  std::function<BenchRun(const BenchPrompt& prompt, int max_tokens, const std::atomic<bool>& stop)>
      run;
  std::string note = "";  ///< what a reader should know of its settings
};
inline constexpr const char* kPlain = "plain";
inline constexpr const char* kAllCategories = "all";

/// Plain or drafted decoding on our engine, all of a prompt read each time; what it is given must
/// outlive it.
BenchMethod engine_method(std::string name, BatchDecoder& decoder,
                          const ChatTemplate& chat_template, DecodeOptions options);

/// What one method did with one prompt: of its runs the one of median time.
struct BenchRecord {
  std::string question_id;
  std::string category;
  std::string method;
  long long tokens = 0;
  long long forwards = 0;
  double prefill_seconds = 0;
  double seconds = 0;
  DraftPlan plan = {};
  bool identical_to_plain = false;     ///< in each run
  std::vector<double> repeat_seconds;  ///< of all runs, in their order
};

/// The sums of one method over the prompts of one category. Errors are standard errors over prompts
/// (jackknife); none where there is only one.
struct BenchResult {
  std::string method;
  std::string category;
  int prompts = 0;
  long long tokens = 0;
  long long forwards = 0;
  double prefill_seconds = 0;
  double seconds = 0;
  DraftPlan plan = {};
  std::optional<double> tokens_per_second_error;
  /// The standard deviation of tokens per second from one repeat to the next; none without repeats.
  std::optional<double> tokens_per_second_spread;
  std::optional<double> tokens_per_forward_error;
  double speedup_over_plain = 0;  ///< ratio of tokens per second; 0 where plain was not run
  std::optional<double> speedup_error;
  int identical_to_plain = 0;  ///< prompts whose tokens all equal plain's

  double tokens_per_second() const { return seconds > 0 ? tokens / seconds : 0; }
  double tokens_per_forward() const {
    return forwards > 0 ? static_cast<double>(tokens) / forwards : 0;
  }
};

/// What a prompt adds to the sums of a method: tokens, forwards, seconds, and the tokens and
/// seconds of plain decoding (0 where it was not run). The figures are functions of the sums.
using PromptSums = Summands<5>;
double tokens_per_second(std::span<const double, 5> sums);
double tokens_per_forward(std::span<const double, 5> sums);
double speedup_over_plain(std::span<const double, 5> sums);

/// Of the prompts of a category, or of kAllCategories, in the order of the records.
std::vector<PromptSums> prompt_sums(std::span<const BenchRecord> records,
                                    const std::string& category, const std::string& method);

/// Runs every method on every prompt `repeats` times, prompt by prompt and repeat by repeat, so
/// that all see the same machine; the order of the methods rotates. One short run of each warms up.
/// When `stop` becomes true, the prompt at hand is dropped and the records are those of the prompts
/// before it.
std::vector<BenchRecord> run_bench(const std::vector<BenchPrompt>& prompts,
                                   const std::vector<BenchMethod>& methods, int max_tokens,
                                   int repeats,
                                   const std::function<void(int done, int total)>& on_progress,
                                   const std::atomic<bool>& stop);

/// The different values of a field, in the order in which they come first.
template <typename Record>
std::vector<std::string> values_of(std::span<const Record> records, std::string Record::*field) {
  std::vector<std::string> values;
  for (const Record& record : records) {
    if (std::ranges::count(values, record.*field) == 0) values.push_back(record.*field);
  }
  return values;
}

/// By category in the order of the records, then kAllCategories; in each the methods in theirs.
std::vector<BenchResult> sum_up(std::span<const BenchRecord> records);

}  // namespace firp
