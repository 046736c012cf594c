#include "bench/sessions_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/native_engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

TEST(SessionsBench, CountsTheTokensOfAllSessionsAndChecksTheirText) {
  const TemporaryDirectory directory;
  write_tiny_model(directory / "tiny.gguf", {.type = GGML_TYPE_Q4_1});
  const Model model(directory / "tiny.gguf");
  NativeEngine engine(model, {.threads = 2, .context = 128, .max_rows = 64});
  BatchDecoder plain(engine), drafted(engine);
  const std::vector<std::vector<Token>> prompts = {{1, 2, 3}, {7, 8}, {5, 6, 7, 8, 9}};
  const DecodeOptions ngrams = {.method = DraftMethod::kNone, .ngrams = true, .tree_nodes = 4};
  int looks = 0;
  const auto results = bench_sessions(plain, drafted, ngrams, prompts,
                                      {.sessions = {1, 4}, .tokens = 8, .rounds = 3},
                                      [&](int, int total) { return ++looks <= total; });
  EXPECT_EQ(looks, 6);
  ASSERT_EQ(results.size(), 2u);
  for (const SessionsResult& each : results) {
    EXPECT_TRUE(each.same_text);
    EXPECT_GE(each.tokens_per_forward, 1);
  }
  EXPECT_THAT(sessions_table(results), testing::Not(testing::HasSubstr("DIFFERENT")));
  EXPECT_EQ(sessions_json({}, results)["results"].size(), 2u);
  EXPECT_TRUE(
      bench_sessions(plain, drafted, ngrams, prompts, {.sessions = {1}, .tokens = 8}, [](int, int) {
        return false;
      }).empty());
}

}  // namespace
}  // namespace firp
