#include "bench/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "base/error.h"
#include "chat/conversation.h"

namespace firp {
namespace {

/// The run of median time stands for all of a prompt; of an even number the faster one of the two.
BenchRecord record_of(const BenchPrompt& prompt, const std::string& method,
                      std::span<const BenchRun> runs) {
  BenchRecord record{
      .question_id = prompt.question_id, .category = prompt.category, .method = method};
  std::vector<const BenchRun*> by_time;
  for (const BenchRun& run : runs) {
    record.repeat_seconds.push_back(run.seconds);
    by_time.push_back(&run);
  }
  std::ranges::stable_sort(by_time, {}, &BenchRun::seconds);
  const BenchRun& median = *by_time[(runs.size() - 1) / 2];
  record.tokens = median.decoded;
  record.forwards = median.forwards;
  record.prefill_seconds = median.prefill_seconds;
  record.seconds = median.seconds;
  record.plan = median.plan;
  return record;
}

bool belongs(const BenchRecord& record, const std::string& category, const std::string& method) {
  return record.method == method && (category == kAllCategories || record.category == category);
}

/// Tokens per second of all prompts in their first runs, in their second runs, ...
std::vector<double> speed_by_repeat(std::span<const BenchRecord> records,
                                    const std::string& category, const std::string& method) {
  std::vector<double> seconds;
  double tokens = 0;
  for (const BenchRecord& record : records) {
    if (!belongs(record, category, method)) continue;
    tokens += static_cast<double>(record.tokens);
    seconds.resize(record.repeat_seconds.size());
    for (std::size_t i = 0; i < seconds.size(); ++i) seconds[i] += record.repeat_seconds[i];
  }
  for (double& value : seconds) value = tokens / value;
  return seconds;
}

BenchResult sum_of(std::span<const BenchRecord> records, const std::string& category,
                   const std::string& method) {
  BenchResult result{.method = method, .category = category};
  for (const BenchRecord& record : records) {
    if (!belongs(record, category, method)) continue;
    result.prompts += 1;
    result.tokens += record.tokens;
    result.forwards += record.forwards;
    result.prefill_seconds += record.prefill_seconds;
    result.seconds += record.seconds;
    result.plan += record.plan;
    result.identical_to_plain += record.identical_to_plain ? 1 : 0;
  }
  const std::vector<PromptSums> sums = prompt_sums(records, category, method);
  const std::span<const PromptSums> prompts(sums);
  result.tokens_per_second_error = jackknife_error(prompts, tokens_per_second);
  result.tokens_per_second_spread = standard_deviation(speed_by_repeat(records, category, method));
  result.tokens_per_forward_error = jackknife_error(prompts, tokens_per_forward);
  if (sum(prompts).back() > 0) {
    result.speedup_over_plain = speedup_over_plain(sum(prompts));
    result.speedup_error = jackknife_error(prompts, speedup_over_plain);
  }
  return result;
}

}  // namespace

DraftPlan& DraftPlan::operator+=(const DraftPlan& other) {
  nodes += other.nodes;
  drafting_passes += other.drafting_passes;
  expected_tokens += other.expected_tokens;
  expected_seconds += other.expected_seconds;
  return *this;
}

BenchMethod engine_method(std::string name, BatchDecoder& decoder,
                          const ChatTemplate& chat_template, DecodeOptions options) {
  options.adopts = false;
  const auto run = [&decoder, &chat_template, options](const BenchPrompt& prompt, int max_tokens,
                                                       const std::atomic<bool>& stop) {
    BenchRun result;
    Session session(decoder, options);
    Conversation conversation(chat_template);
    const Vocabulary& vocabulary = chat_template.vocabulary();
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

std::vector<BenchRecord> run_bench(const std::vector<BenchPrompt>& prompts,
                                   const std::vector<BenchMethod>& methods, int max_tokens,
                                   int repeats,
                                   const std::function<void(int done, int total)>& on_progress,
                                   const std::atomic<bool>& stop) {
  const std::size_t count = methods.size();
  const std::size_t plain = static_cast<std::size_t>(
      std::ranges::find(methods, kPlain, &BenchMethod::name) - methods.begin());

  const int total = static_cast<int>(prompts.size());
  on_progress(0, total);
  constexpr int kWarmUpTokens = 16;
  const BenchPrompt warm_up = {.question_id = "", .category = "", .turns = {"Hello!"}};
  for (const BenchMethod& method : methods) {
    if (!stop) method.run(warm_up, std::min(max_tokens, kWarmUpTokens), stop);
  }

  std::vector<BenchRecord> records;
  std::size_t first = 0;  // the method whose turn it is to be the first
  for (int done = 0; done < total; ++done) {
    const BenchPrompt& prompt = prompts[done];
    std::vector<std::vector<BenchRun>> runs(count);
    for (int repeat = 0; repeat < repeats; ++repeat, ++first) {
      for (std::size_t i = 0; i < count && !stop; ++i) {
        const std::size_t m = (first + i) % count;
        try {
          runs[m].push_back(methods[m].run(prompt, max_tokens, stop));
        } catch (const Error& error) {
          throw Error(fmt::format("question {}: {}", prompt.question_id, error.what()));
        }
      }
    }
    if (stop) break;
    for (std::size_t m = 0; m < count; ++m) {
      BenchRecord& record = records.emplace_back(record_of(prompt, methods[m].name, runs[m]));
      record.identical_to_plain =
          plain < count && std::ranges::all_of(runs[m], [&](const BenchRun& run) {
            return run.tokens == runs[plain].front().tokens;
          });
    }
    on_progress(done + 1, total);
  }
  return records;
}

double tokens_per_second(std::span<const double, 5> sums) { return sums[0] / sums[2]; }
double tokens_per_forward(std::span<const double, 5> sums) { return sums[0] / sums[1]; }
double speedup_over_plain(std::span<const double, 5> sums) {
  return tokens_per_second(sums) / (sums[3] / sums[4]);
}

std::vector<PromptSums> prompt_sums(std::span<const BenchRecord> records,
                                    const std::string& category, const std::string& method) {
  std::map<std::pair<std::string, std::string>, const BenchRecord*> plain;
  for (const BenchRecord& record : records) {
    if (record.method == kPlain) plain[{record.category, record.question_id}] = &record;
  }
  std::vector<PromptSums> sums;
  for (const BenchRecord& record : records) {
    if (!belongs(record, category, method)) continue;
    const auto same = plain.find({record.category, record.question_id});
    const BenchRecord beside = same == plain.end() ? BenchRecord() : *same->second;
    sums.push_back({static_cast<double>(record.tokens), static_cast<double>(record.forwards),
                    record.seconds, static_cast<double>(beside.tokens), beside.seconds});
  }
  return sums;
}

std::vector<BenchResult> sum_up(std::span<const BenchRecord> records) {
  std::vector<std::string> categories = values_of(records, &BenchRecord::category);
  if (!records.empty()) categories.push_back(kAllCategories);
  std::vector<BenchResult> results;
  for (const std::string& category : categories) {
    for (const std::string& method : values_of(records, &BenchRecord::method)) {
      const auto of_both = [&](const BenchRecord& record) {
        return belongs(record, category, method);
      };
      if (std::ranges::any_of(records, of_both)) {
        results.push_back(sum_of(records, category, method));
      }
    }
  }
  return results;
}

}  // namespace firp
