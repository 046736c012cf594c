#pragma once

#include <cmath>
#include <memory>
#include <random>

#include "engine/native_engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {

/// A model of eight tokens: a tree of some dozen nodes then often holds the right one, although the
/// maps are random.
struct TestModel {
  static constexpr int kVocabulary = 8;

  TestModel() {
    write_tiny_model(directory / "tiny.gguf",
                     {.type = GGML_TYPE_Q4_1, .vocabulary_size = kVocabulary});
    model = std::make_unique<Model>(directory / "tiny.gguf");
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0, 1);
    const int d = model->config().hidden_size;
    for (const int layer : {2, 1, 2}) {
      DraftMap map;
      map.layer = layer;
      map.weight.resize(static_cast<std::size_t>(d) * d);
      for (float& w : map.weight) {
        w = ggml_fp16_to_fp32(ggml_fp32_to_fp16(normal(random) / std::sqrt(static_cast<float>(d))));
      }
      map.bias.assign(d, 0.0f);
      constexpr int kRank = 4;
      SequentialHead head = {.rank = kRank,
                             .state = std::vector<float>(kRank * d, 0.125f),
                             .token = std::vector<float>(kRank * d, 0.25f),
                             .bias = std::vector<float>(kRank, 0.5f),
                             .output = std::vector<float>(d * kRank, 0.0f)};
      for (float& w : head.output) w = 0.125f * static_cast<float>(int(random() % 5) - 2);
      map.sequence = std::move(head);
      heads.steps.push_back(std::move(map));
    }
    heads.draft_vocabulary = {3, 1, 0, 7, 6, 5, 4, 2};
  }

  /// An engine with the heads.
  std::unique_ptr<Engine> engine(const EngineOptions& options) const {
    auto engine = std::make_unique<NativeEngine>(*model, options);
    engine->set_heads(heads);
    return engine;
  }

  const TemporaryDirectory directory;
  std::unique_ptr<Model> model;
  Heads heads;
};

}  // namespace firp
