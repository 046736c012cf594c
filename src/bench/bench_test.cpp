#include "bench/bench.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "bench/report.h"
#include "bench/statistics.h"
#include "model/test_files.h"

namespace firp {
namespace {

class BenchTest : public testing::Test {
 protected:
  const TemporaryDirectory directory_;
  const std::atomic<bool> go_on_ = false;
};

/// A method that "decodes" the tokens given, in `forwards` passes of a second each.
BenchMethod fake(std::string name, std::vector<Token> tokens, int forwards,
                 std::vector<std::string>& calls) {
  return {name, [=, &calls](const BenchPrompt& prompt, int, const std::atomic<bool>&) {
            if (!prompt.question_id.empty()) calls.push_back(prompt.question_id + name);
            BenchRun run;
            run.tokens = tokens;
            run.decoded = static_cast<long long>(tokens.size());
            run.forwards = forwards;
            run.seconds = forwards;
            run.prefill_seconds = 0.5;
            return run;
          }};
}

std::vector<BenchPrompt> three_prompts() {
  return {{"1", "qa", {"a"}}, {"2", "chat", {"b"}}, {"3", "qa", {"c"}}};
}

TEST_F(BenchTest, AddsUpByCategoryAndComparesWithPlain) {
  std::vector<std::string> calls;
  const std::vector<BenchMethod> methods = {fake("plain", {1, 2, 3, 4}, 4, calls),
                                            fake("firp", {1, 2, 3, 4}, 2, calls),
                                            fake("other", {1, 2, 9, 4}, 8, calls)};
  std::vector<int> progress;
  const auto results = sum_up(run_bench(
      three_prompts(), methods, 10, 1,
      [&](int done, int total) {
        EXPECT_EQ(total, 3);
        progress.push_back(done);
      },
      go_on_));
  EXPECT_EQ(progress, (std::vector<int>{0, 1, 2, 3}));
  // Interleaved, each method first in turn.
  EXPECT_EQ(calls, (std::vector<std::string>{"1plain", "1firp", "1other", "2firp", "2other",
                                             "2plain", "3other", "3plain", "3firp"}));
  ASSERT_EQ(results.size(), 9u);
  EXPECT_EQ(results[0].category, "qa");
  EXPECT_EQ(results[3].category, "chat");
  EXPECT_EQ(results[6].category, "all");
  const BenchResult& firp = results[1];
  EXPECT_EQ(firp.method, "firp");
  EXPECT_EQ(firp.prompts, 2);
  EXPECT_EQ(firp.tokens, 8);
  EXPECT_EQ(firp.forwards, 4);
  EXPECT_DOUBLE_EQ(firp.seconds, 4);
  EXPECT_DOUBLE_EQ(firp.prefill_seconds, 1);
  EXPECT_DOUBLE_EQ(firp.tokens_per_second(), 2);
  EXPECT_DOUBLE_EQ(firp.tokens_per_forward(), 2);
  EXPECT_DOUBLE_EQ(firp.speedup_over_plain, 2);
  EXPECT_EQ(firp.identical_to_plain, 2);
  EXPECT_EQ(results[7].identical_to_plain, 3);
  EXPECT_EQ(results[8].identical_to_plain, 0);
  EXPECT_DOUBLE_EQ(results[8].speedup_over_plain, 0.5);
}

TEST_F(BenchTest, AStopDropsThePromptAtHand) {
  std::atomic<bool> stop = false;
  std::vector<std::string> calls;
  std::vector<BenchMethod> methods = {fake("plain", {1}, 1, calls), fake("firp", {1}, 1, calls)};
  const auto run = methods[0].run;
  methods[0].run = [&](const BenchPrompt& prompt, int most, const std::atomic<bool>& s) {
    if (prompt.question_id == "2") stop = true;
    return run(prompt, most, s);
  };
  const auto results = sum_up(run_bench(
      three_prompts(), methods, 10, 1, [](int, int) {}, stop));
  ASSERT_EQ(results.size(), 4u);
  EXPECT_EQ(results[3].category, "all");
  EXPECT_EQ(results[3].prompts, 1);
}

TEST_F(BenchTest, AnErrorNamesTheQuestion) {
  const BenchMethod method = {
      "plain", [](const BenchPrompt& prompt, int, const std::atomic<bool>&) -> BenchRun {
        if (prompt.question_id == "2") throw Error("too long");
        return {};
      }};
  try {
    run_bench(
        three_prompts(), {method}, 10, 1, [](int, int) {}, go_on_);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "question 2: too long");
  }
}

TEST_F(BenchTest, RepeatsInTurnAndTheMedianCounts) {
  std::vector<std::string> calls;
  std::vector<BenchMethod> methods = {fake("plain", {1, 2}, 1, calls),
                                      fake("firp", {1, 2}, 1, calls)};
  const auto run = methods[1].run;
  std::vector<double> seconds = {0 /* warm-up */, 5, 1, 2};  // of the runs of firp
  methods[1].run = [&](const BenchPrompt& prompt, int most, const std::atomic<bool>& stop) {
    BenchRun result = run(prompt, most, stop);
    result.seconds = seconds.front();
    result.forwards = static_cast<long long>(seconds.front());
    if (seconds.front() == 5) result.tokens[0] = 7;
    seconds.erase(seconds.begin());
    return result;
  };
  const auto records = run_bench(
      {{"1", "qa", {"a"}}}, methods, 10, 3, [](int, int) {}, go_on_);
  EXPECT_EQ(calls,
            (std::vector<std::string>{"1plain", "1firp", "1firp", "1plain", "1plain", "1firp"}));
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].repeat_seconds, (std::vector<double>{5, 1, 2}));
  EXPECT_EQ(records[1].seconds, 2);
  EXPECT_EQ(records[1].forwards, 2);  // of the same run
  EXPECT_TRUE(records[0].identical_to_plain);
  EXPECT_FALSE(records[1].identical_to_plain);  // once it was another text
  const auto results = sum_up(records);
  EXPECT_DOUBLE_EQ(results[1].speedup_over_plain, 0.5);
  // 2 / 5, 2 / 1 and 2 / 2 tokens a second: mean 17 / 15.
  EXPECT_NEAR(results[1].tokens_per_second_spread.value(), 0.8083, 1e-4);
  EXPECT_FALSE(results[1].speedup_error.has_value());  // one prompt tells nothing of others
}

TEST(Jackknife, OfAMeanIsItsStandardError) {
  const std::vector<Summands<2>> items = {{1, 1}, {2, 1}, {4, 1}, {9, 1}};
  const auto mean = [](const Summands<2>& sums) { return sums[0] / sums[1]; };
  // Standard deviation of 1, 2, 4, 9 over the root of 4: sqrt(38 / 3) / 2.
  EXPECT_NEAR(jackknife_error<2>(items, mean).value(), std::sqrt(38.0 / 3) / 2, 1e-12);
  const std::vector<Summands<2>> same(3, {2, 1});
  EXPECT_EQ(jackknife_error<2>(same, mean).value(), 0);
  EXPECT_FALSE(jackknife_error<2>(std::span(items).first(1), mean).has_value());
}

TEST(Jackknife, OfARatioIsSmallWhereBothSidesVaryTogether) {
  // Speeds differ much between prompts, their ratio does not: that is why methods are compared
  // prompt by prompt.
  const std::vector<Summands<2>> items = {{2.02, 1}, {20, 10}, {6.06, 3}, {39.6, 20}};
  const auto ratio = [](const Summands<2>& sums) { return sums[0] / sums[1]; };
  EXPECT_NEAR(jackknife_error<2>(items, ratio).value(), 0.013392, 1e-6);
}

TEST_F(BenchTest, JsonHasWhatIsPromisedAndNullsWithoutPlain) {
  std::vector<std::string> calls;
  const auto json = [&](const char* name) {
    return bench_json(
        {{{"cpu", "x"}},
         {{"tokens", 10}},
         run_bench(
             three_prompts(), {fake(name, {1, 2}, 1, calls)}, 10, 1, [](int, int) {}, go_on_)});
  };
  const auto plain = json("plain");
  EXPECT_EQ(plain["machine"]["cpu"], "x");
  ASSERT_EQ(plain["results"].size(), 3u);
  for (const char* key :
       {"method", "category", "prompts", "tokens", "forwards", "seconds", "prefill_seconds",
        "tokens_per_second", "tokens_per_second_error", "tokens_per_forward",
        "tokens_per_forward_error", "speedup_over_plain", "speedup_error", "identical_to_plain"}) {
    EXPECT_TRUE(plain["results"][2].contains(key)) << key;
    EXPECT_FALSE(plain["results"][2][key].is_null()) << key;
  }
  EXPECT_EQ(plain["results"][2]["identical_to_plain"], 3);
  EXPECT_TRUE(plain["results"][2]["tokens_per_second_spread"].is_null());  // no repeats
  const auto alone = json("firp");
  EXPECT_TRUE(alone["results"][0]["speedup_over_plain"].is_null());
  EXPECT_TRUE(alone["results"][0]["identical_to_plain"].is_null());
}

TEST_F(BenchTest, ReadsBackWhatItWrites) {
  std::vector<std::string> calls;
  const BenchReport report = {
      {{"cpu", "x"}},
      {{"tokens", 10}},
      run_bench(
          three_prompts(), {fake("plain", {1, 2}, 3, calls), fake("other", {1}, 2, calls)}, 10, 2,
          [](int, int) {}, go_on_)};
  const std::filesystem::path path = directory_ / "result.json";
  write_json(bench_json(report), path);
  EXPECT_EQ(bench_json(read_bench_report(path)), bench_json(report));
  for (const char* bad : {"", "{", "[]", R"({"machine": {}, "settings": {}, "results": []})",
                          R"({"machine": {}, "settings": {}, "runs": []})",
                          R"({"machine": {}, "settings": {}, "runs": [{"method": 1}]})"}) {
    std::ofstream(path) << bad;
    EXPECT_THROW(read_bench_report(path), Error) << bad;
  }
  EXPECT_THROW(read_bench_report(directory_ / "nothing"), Error);
}

TEST_F(BenchTest, WritesJsonWholeOrNotAtAll) {
  const std::filesystem::path path = directory_ / "out.json";
  write_json({{"a", 1}}, path);
  write_json({{"a", 2}}, path);
  std::ifstream file(path);
  EXPECT_EQ(nlohmann::json::parse(file)["a"], 2);
  EXPECT_THROW(write_json({{"a", 3}}, directory_ / "no" / "out.json"), Error);
  EXPECT_THROW(require_writable(directory_ / "no" / "out.json"), Error);
  EXPECT_THROW(require_writable(directory_.path()), Error);
  EXPECT_THROW(require_writable("/dev/full"), Error);
  EXPECT_NO_THROW(require_writable(path));
  std::filesystem::create_directory(directory_ / "taken");
  EXPECT_THROW(write_json({{"a", 4}}, directory_ / "taken"), Error);
  int left = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
    left += entry.path().string().find(".tmp-") != std::string::npos;
  }
  EXPECT_EQ(left, 0);
}

}  // namespace
}  // namespace firp
