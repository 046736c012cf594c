#include "bench/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "decode/conversation.h"
#include "model/error.h"

namespace firp {
namespace {

/// The problem with a line of the prompts file; empty: none.
std::string parse_prompt(const std::string& line, BenchPrompt& prompt) {
  const nlohmann::json object =
      nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false, /*ignore_comments=*/false);
  if (!object.is_object()) return "not a JSON object";
  const auto id = object.find("question_id");
  if (id == object.end() || !(id->is_number_integer() || id->is_string())) {
    return "\"question_id\" must be a number or a string";
  }
  const auto category = object.find("category");
  if (category == object.end() || !category->is_string()) return "\"category\" must be a string";
  if (*category == kAllCategories) return "the category \"all\" is taken for the sum";
  const auto turns = object.find("turns");
  const auto is_text = [](const nlohmann::json& turn) {
    return turn.is_string() && !turn.get_ref<const std::string&>().empty();
  };
  if (turns == object.end() || !turns->is_array() || turns->empty() ||
      !std::all_of(turns->begin(), turns->end(), is_text)) {
    return "\"turns\" must be a list of one or more texts";
  }
  prompt.question_id = id->is_string() ? id->get<std::string>() : id->dump();
  prompt.category = category->get<std::string>();
  prompt.turns = turns->get<std::vector<std::string>>();
  return "";
}

void add(BenchResult& result, const BenchRun& run, const BenchRun* plain) {
  result.prompts += 1;
  result.tokens += run.decoded;
  result.forwards += run.forwards;
  result.prefill_seconds += run.prefill_seconds;
  result.seconds += run.seconds;
  result.plan += run.plan;
  if (plain != nullptr && run.tokens == plain->tokens) result.identical_to_plain += 1;
}

}  // namespace

DraftPlan& DraftPlan::operator+=(const DraftPlan& other) {
  nodes += other.nodes;
  drafting_passes += other.drafting_passes;
  expected_tokens += other.expected_tokens;
  expected_seconds += other.expected_seconds;
  return *this;
}

std::vector<BenchPrompt> read_bench_prompts(const std::filesystem::path& path, int limit,
                                            int turns) {
  std::ifstream file(path);
  std::string line;
  std::vector<BenchPrompt> prompts;
  std::map<std::string, int> taken;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    BenchPrompt prompt;
    if (const std::string problem = parse_prompt(line, prompt); !problem.empty()) {
      throw Error(fmt::format("{}, line {}: {}", path.string(), number, problem));
    }
    if (limit > 0 && ++taken[prompt.category] > limit) continue;
    if (turns > 0 && static_cast<int>(prompt.turns.size()) > turns) prompt.turns.resize(turns);
    prompts.push_back(std::move(prompt));
  }
  // Not at the end of the file: it could not be opened, or read.
  if (!file.eof()) {
    throw Error(fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)));
  }
  if (prompts.empty()) throw Error(fmt::format("{} holds no prompts", path.string()));
  return prompts;
}

BenchMethod engine_method(std::string name, Engine& engine, const Vocabulary& vocabulary,
                          const DecodeOptions& options) {
  const auto run = [&engine, &vocabulary, options](const BenchPrompt& prompt, int max_tokens,
                                                   const std::atomic<bool>& stop) {
    BenchRun result;
    Session session(engine, options);
    Conversation conversation(vocabulary);
    for (const std::string& turn : prompt.turns) {
      session.append(conversation.user_turn(turn));
      bool ended = false;
      const DecodeStats stats = generate(
          session, max_tokens,
          [&](Token token) {
            const bool end = vocabulary.is_end_of_generation(token);
            ended = ended || end;
            return end;
          },
          [&](const DecodedToken& token) {
            result.tokens.push_back(token.token);
            return !stop;
          });
      result.tokens.push_back(kNoToken);
      result.decoded += stats.tokens + (ended ? 1 : 0);
      result.forwards += stats.forwards;
      result.prefill_seconds += stats.prefill_seconds;
      result.seconds += stats.decode_seconds;
      result.plan +=
          {stats.drafted, stats.drafting_passes, stats.expected_tokens, stats.expected_seconds};
      if (stop) break;
    }
    return result;
  };
  return {std::move(name), run};
}

std::vector<BenchResult> run_bench(const std::vector<BenchPrompt>& prompts,
                                   const std::vector<BenchMethod>& methods, int max_tokens,
                                   const std::function<void(int done, int total)>& on_progress,
                                   const std::atomic<bool>& stop) {
  const std::size_t count = methods.size();
  std::size_t plain = count;  // its index; count: not among the methods
  for (std::size_t m = 0; m < count; ++m) {
    if (methods[m].name == kPlain) plain = m;
  }

  const int total = static_cast<int>(prompts.size());
  on_progress(0, total);
  constexpr int kWarmUpTokens = 16;
  const BenchPrompt warm_up = {.question_id = "", .category = "", .turns = {"Hello!"}};
  for (const BenchMethod& method : methods) {
    if (!stop) method.run(warm_up, std::min(max_tokens, kWarmUpTokens), stop);
  }

  std::vector<std::string> categories;
  std::map<std::string, std::vector<BenchResult>> sums;  // category -> one a method
  for (int done = 0; done < total; ++done) {
    const BenchPrompt& prompt = prompts[done];
    std::vector<BenchRun> runs(count);
    for (std::size_t i = 0; i < count && !stop; ++i) {
      const std::size_t m = (i + done) % count;
      try {
        runs[m] = methods[m].run(prompt, max_tokens, stop);
      } catch (const Error& error) {
        throw Error(fmt::format("question {}: {}", prompt.question_id, error.what()));
      }
    }
    if (stop) break;
    for (const std::string& category : {prompt.category, std::string(kAllCategories)}) {
      std::vector<BenchResult>& results = sums[category];
      if (results.empty()) {
        results.resize(count);
        if (category != kAllCategories) categories.push_back(category);
      }
      for (std::size_t m = 0; m < count; ++m) {
        add(results[m], runs[m], plain < count ? &runs[plain] : nullptr);
      }
    }
    on_progress(done + 1, total);
  }

  std::vector<BenchResult> results;
  categories.push_back(kAllCategories);
  for (const std::string& category : categories) {
    std::vector<BenchResult>& of_category = sums[category];
    for (std::size_t m = 0; m < of_category.size(); ++m) {
      BenchResult& result = of_category[m];
      result.method = methods[m].name;
      result.category = category;
      if (plain < count && of_category[plain].tokens_per_second() > 0) {
        result.speedup_over_plain =
            result.tokens_per_second() / of_category[plain].tokens_per_second();
      }
      results.push_back(result);
    }
  }
  return results;
}

}  // namespace firp
