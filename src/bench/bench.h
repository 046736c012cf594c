#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "decode/session.h"
#include "model/vocabulary.h"

namespace firp {

/// A line of a prompts file in Spec-Bench's form
/// (https://github.com/hemingkx/Spec-Bench/tree/main/data): a conversation of one or more turns.
struct BenchPrompt {
  std::string question_id;
  std::string category;
  std::vector<std::string> turns;
};

/// Reads JSONL. At most `limit` prompts of each category and `turns` turns of each prompt; 0: all.
/// An Error names the file and line.
std::vector<BenchPrompt> read_bench_prompts(const std::filesystem::path& path, int limit,
                                            int turns);

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

/// Plain or drafted decoding on our engine; what it is given must outlive it.
BenchMethod engine_method(std::string name, Engine& engine, const Vocabulary& vocabulary,
                          const DecodeOptions& options);

/// The sums of one method over the prompts of one category.
struct BenchResult {
  std::string method;
  std::string category;
  int prompts = 0;
  long long tokens = 0;
  long long forwards = 0;
  double prefill_seconds = 0;
  double seconds = 0;
  DraftPlan plan = {};
  double speedup_over_plain = 0;  ///< ratio of tokens per second; 0 where plain was not run
  int identical_to_plain = 0;     ///< prompts whose tokens all equal plain's

  double tokens_per_second() const { return seconds > 0 ? tokens / seconds : 0; }
  double tokens_per_forward() const {
    return forwards > 0 ? static_cast<double>(tokens) / forwards : 0;
  }
};

/// Runs every method on every prompt, prompt by prompt, so that all see the same machine; the order
/// of the methods rotates. One short run of each warms up. When `stop` becomes true, the prompt at
/// hand is dropped and the results are those of the prompts before it.
///
/// The results are by category in the order of the file, then kAllCategories; in each the methods
/// in the order given.
std::vector<BenchResult> run_bench(const std::vector<BenchPrompt>& prompts,
                                   const std::vector<BenchMethod>& methods, int max_tokens,
                                   const std::function<void(int done, int total)>& on_progress,
                                   const std::atomic<bool>& stop);

}  // namespace firp
