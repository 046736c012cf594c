#pragma once

#include <random>
#include <vector>

#include "engine/native_engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"
#include "train/synthesis.h"

namespace firp {

/// A tiny model of three layers, heads for it and texts that it writes.
class StudyTest : public ::testing::Test {
 protected:
  StudyTest()
      : model_((write_tiny_model(directory_ / "tiny.gguf", {}), directory_ / "tiny.gguf")) {}

  NativeEngine engine(int max_rows = 64) const {
    return NativeEngine(
        model_, {.threads = 1, .context = 1024, .max_rows = max_rows, .rough_drafts = false});
  }

  /// Maps that enter after `layers`, each with random weights of this size and a random bias.
  Heads heads(const std::vector<int>& layers, float size) const {
    std::mt19937 random(7);
    std::normal_distribution<float> normal(0, 1);
    const int d = model_.config().hidden_size;
    Heads heads = {.base = model_.identity()};
    for (const int layer : layers) {
      DraftMap map = {.layer = layer};
      for (int i = 0; i < d * d; ++i) {
        map.weight.push_back(size / 16 * static_cast<float>(static_cast<int>(random() % 9) - 4));
      }
      for (int i = 0; i < d; ++i) map.bias.push_back(normal(random));
      heads.steps.push_back(std::move(map));
    }
    return heads;
  }

  std::vector<Text> greedy_texts(Engine& engine, int count) const {
    std::mt19937 random(3);
    std::vector<GenerationJob> jobs;
    for (int i = 0; i < count; ++i) {
      GenerationJob job = {.prompt = {}, .max_tokens = 30, .sampling = {.stream = i}};
      for (int k = 0; k < 6 + 4 * i; ++k) job.prompt.push_back(static_cast<Token>(random() % 320));
      jobs.push_back(std::move(job));
    }
    const auto answers = generate_batch(
        engine, jobs, [](Token) { return false; }, 1 << 20, [](long long) { return true; });
    std::vector<Text> texts;
    for (int i = 0; i < count; ++i) {
      Text text = {.tokens = jobs[i].prompt,
                   .answer_begin = static_cast<int>(jobs[i].prompt.size()),
                   .greedy = true};
      text.tokens.insert(text.tokens.end(), answers[i].begin(), answers[i].end());
      texts.push_back(std::move(text));
    }
    return texts;
  }

  TemporaryDirectory directory_;
  Model model_;
};

}  // namespace firp
