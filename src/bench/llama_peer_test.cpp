#include "bench/llama_peer.h"

#include <gtest/gtest.h>

#include "model/test_files.h"

namespace firp {
namespace {

TEST(LlamaPeer, ReadsNoPromptOnOnceItIsStopped) {
  if (!std::filesystem::exists(real_model())) GTEST_SKIP() << "scripts/setup.sh fetches the model";
  const Vocabulary vocabulary(real_model());
  const ChatTemplate chat_template(vocabulary);
  LlamaPeer peer(real_model(), /*threads=*/1, /*context=*/1024, CacheType::kF16);
  const BenchMethod plain = peer.methods(chat_template, {}).front();
  const BenchPrompt prompt = {"1", "qa", {"Who wrote Hamlet?"}};
  std::atomic<bool> stop = true;
  const BenchRun stopped = plain.run(prompt, 4, stop);
  EXPECT_EQ(stopped.prefill_seconds, 0);  // the pass did not end
  EXPECT_EQ(stopped.decoded, 0);
  stop = false;
  const BenchRun run = plain.run(prompt, 4, stop);
  EXPECT_GT(run.prefill_seconds, 0);
  EXPECT_EQ(run.decoded, 4);
}

}  // namespace
}  // namespace firp
