#include "train/synthesis.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "engine/native_engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

TEST(Synthesis, ReadsTheFirstTurnsAndNamesBadLines) {
  const TemporaryDirectory directory;
  const auto read = [&](const std::string& bytes) {
    write_bytes(directory / "prompts.jsonl", bytes);
    return read_prompts(directory / "prompts.jsonl");
  };
  EXPECT_EQ(read("{\"turns\": [\"One\", \"two\"]}\n\n{\"turns\": [\"Three\"]}\n"),
            (std::vector<std::string>{"One", "Three"}));
  for (const char* bad : {"{\"turns\": [", "[]", "{\"turn\": [\"x\"]}", "{\"turns\": []}",
                          "{\"turns\": [7]}", "{\"turns\": [\"  \"]}"}) {
    const std::string message =
        error_of([&] { read("{\"turns\": [\"One\"]}\n" + std::string(bad) + "\n"); });
    EXPECT_NE(message.find("line 2"), std::string::npos) << message;
  }
  EXPECT_NE(error_of([&] { read("\n"); }).find("no prompts"), std::string::npos);
  EXPECT_THROW(read_prompts(directory / "nothing.jsonl"), Error);
}

TEST(Synthesis, KeepsWholeSentencesOnly) {
  EXPECT_EQ(whole_sentences("  One sentence. Another one? And a hal", false),
            "One sentence. Another one?");
  EXPECT_EQ(whole_sentences("No sentence end at all", false), "");
  EXPECT_EQ(whole_sentences("It ended by itself", true), "It ended by itself");
  EXPECT_EQ(whole_sentences(" \n ", true), "");
}

/// A text depends on its own prompt and stream alone, not on what else is in the batch.
TEST(Synthesis, BatchesGiveEachJobTheTokensThatItHasAlone) {
  const TemporaryDirectory directory;
  write_tiny_model(directory / "tiny.gguf", {.type = GGML_TYPE_Q8_0});
  const Model model(directory / "tiny.gguf");
  NativeEngine engine(model, {.threads = 2, .context = 128, .max_rows = 48});
  std::vector<GenerationJob> jobs;
  for (int i = 0; i < 90; ++i) {  // more than run at a time
    GenerationJob job{.prompt = {}, .max_tokens = 3 + i % 17, .sampling = {}};
    for (int k = 0; k <= i % 7; ++k) job.prompt.push_back((i * 31 + k * 7) % 320);
    if (i % 2 == 1) job.sampling = {.temperature = 1.0f, .seed = 5};
    job.sampling.stream = i;
    jobs.push_back(std::move(job));
  }
  const auto is_end = [](Token token) { return token == 11; };
  constexpr long long kNoLimit = std::numeric_limits<long long>::max();
  const auto go_on = [](long long) { return true; };
  const auto together = generate_batch(engine, jobs, is_end, kNoLimit, go_on);
  ASSERT_EQ(together.size(), jobs.size());
  for (std::size_t i = 0; i < jobs.size(); i += 11) {
    const auto alone =
        generate_batch(engine, std::span(jobs).subspan(i, 1), is_end, kNoLimit, go_on);
    EXPECT_EQ(together[i], alone[0]) << i;
    EXPECT_LE(static_cast<int>(together[i].size()), jobs[i].max_tokens);
    EXPECT_FALSE(together[i].empty());
  }
  const auto stopped =
      generate_batch(engine, jobs, is_end, kNoLimit, [](long long tokens) { return tokens < 40; });
  int unfinished = 0;
  for (const std::vector<Token>& tokens : stopped) unfinished += tokens.empty();
  EXPECT_GT(unfinished, 0);
  EXPECT_EQ(engine.add_sequence(), 0) << "all sequences were given back";
}

}  // namespace
}  // namespace firp
