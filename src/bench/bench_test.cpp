#include "bench/bench.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "bench/report.h"
#include "model/error.h"

namespace firp {
namespace {

class BenchTest : public testing::Test {
 protected:
  BenchTest() {
    std::string name = (std::filesystem::temp_directory_path() / "firp-bench-XXXXXX").string();
    directory_ = mkdtemp(name.data());
  }
  ~BenchTest() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path file(const std::string& text) const {
    const std::filesystem::path path = directory_ / "prompts.jsonl";
    std::ofstream(path) << text;
    return path;
  }

  std::string error(const std::string& text) const {
    try {
      read_bench_prompts(file(text), 0, 0);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

  std::filesystem::path directory_;
  const std::atomic<bool> go_on_ = false;
};

constexpr const char* kPrompts =
    R"({"question_id": 81, "category": "writing", "turns": ["a", "b"]})"
    "\n\n"
    R"({"question_id": "x", "category": "qa", "turns": ["c"], "more": 1})"
    "\n"
    R"({"question_id": 83, "category": "writing", "turns": ["d", "e", "f"]})";

TEST_F(BenchTest, ReadsPromptsInTheFormOfSpecBench) {
  const auto prompts = read_bench_prompts(file(kPrompts), 0, 0);
  ASSERT_EQ(prompts.size(), 3u);
  EXPECT_EQ(prompts[0].question_id, "81");
  EXPECT_EQ(prompts[1].question_id, "x");
  EXPECT_EQ(prompts[1].category, "qa");
  EXPECT_EQ(prompts[2].turns, (std::vector<std::string>{"d", "e", "f"}));
}

TEST_F(BenchTest, LimitsPromptsByCategoryAndTurnsByPrompt) {
  const auto prompts = read_bench_prompts(file(kPrompts), 1, 1);
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[0].turns, std::vector<std::string>{"a"});
  EXPECT_EQ(prompts[1].question_id, "x");
}

TEST_F(BenchTest, NamesTheFileAndLineOfABadPrompt) {
  const std::string good = R"({"question_id": 1, "category": "qa", "turns": ["c"]})";
  for (const char* bad :
       {"{", "[]", "7", R"({"category": "qa", "turns": ["c"]})",
        R"({"question_id": 1, "turns": ["c"]})", R"({"question_id": 1, "category": "qa"})",
        R"({"question_id": 1, "category": "qa", "turns": []})",
        R"({"question_id": 1, "category": "qa", "turns": [1]})",
        R"({"question_id": 1, "category": "qa", "turns": [""]})",
        R"({"question_id": 1, "category": "qa", "turns": "c"})",
        R"({"question_id": 1, "category": "all", "turns": ["c"]})",
        R"({"question_id": 1, "category": "qa", "turns": ["c"]} x)",
        "{\"question_id\": 1, \"category\": \"\xff\", \"turns\": [\"c\"]}"}) {
    const std::string message = error(good + "\n" + bad + "\n");
    EXPECT_NE(message.find("prompts.jsonl, line 2: "), std::string::npos) << bad << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  EXPECT_NE(error("\n \n").find("holds no prompts"), std::string::npos);
  EXPECT_THROW(read_bench_prompts(directory_ / "nothing", 0, 0), Error);
  EXPECT_THROW(read_bench_prompts(directory_, 0, 0), Error);
}

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
  const auto results = run_bench(
      three_prompts(), methods, 10,
      [&](int done, int total) {
        EXPECT_EQ(total, 3);
        progress.push_back(done);
      },
      go_on_);
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
  const auto results = run_bench(
      three_prompts(), methods, 10, [](int, int) {}, stop);
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
        three_prompts(), {method}, 10, [](int, int) {}, go_on_);
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "question 2: too long");
  }
}

TEST_F(BenchTest, JsonHasWhatIsPromisedAndNullsWithoutPlain) {
  std::vector<std::string> calls;
  const auto results = [&](const char* name) {
    return run_bench(
        three_prompts(), {fake(name, {1, 2}, 1, calls)}, 10, [](int, int) {}, go_on_);
  };
  const auto json = bench_json({{"cpu", "x"}}, {{"tokens", 10}}, results("plain"));
  EXPECT_EQ(json["machine"]["cpu"], "x");
  ASSERT_EQ(json["results"].size(), 3u);
  for (const char* key :
       {"method", "category", "prompts", "tokens", "forwards", "seconds", "prefill_seconds",
        "tokens_per_second", "tokens_per_forward", "speedup_over_plain", "identical_to_plain"}) {
    EXPECT_TRUE(json["results"][2].contains(key)) << key;
    EXPECT_FALSE(json["results"][2][key].is_null()) << key;
  }
  EXPECT_EQ(json["results"][2]["identical_to_plain"], 3);
  const auto alone = bench_json({}, {}, results("firp"));
  EXPECT_TRUE(alone["results"][0]["speedup_over_plain"].is_null());
  EXPECT_TRUE(alone["results"][0]["identical_to_plain"].is_null());
}

TEST_F(BenchTest, WritesJsonWholeOrNotAtAll) {
  const std::filesystem::path path = directory_ / "out.json";
  write_json({{"a", 1}}, path);
  write_json({{"a", 2}}, path);
  std::ifstream file(path);
  EXPECT_EQ(nlohmann::json::parse(file)["a"], 2);
  EXPECT_THROW(write_json({{"a", 3}}, directory_ / "no" / "out.json"), Error);
  EXPECT_THROW(require_writable(directory_ / "no" / "out.json"), Error);
  EXPECT_THROW(require_writable(directory_), Error);
  EXPECT_THROW(require_writable("/dev/full"), Error);
  EXPECT_NO_THROW(require_writable(path));
  std::filesystem::create_directory(directory_ / "taken");
  EXPECT_THROW(write_json({{"a", 4}}, directory_ / "taken"), Error);
  int left = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) {
    left += entry.path().string().find(".tmp-") != std::string::npos;
  }
  EXPECT_EQ(left, 0);
}

}  // namespace
}  // namespace firp
