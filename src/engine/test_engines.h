#pragma once

// Tiny models, and what the tests of the engines do with them.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/token_chain.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {

/// A tiny model on disk for as long as the test runs, and the instruction set that it runs with.
class TinyModel {
 public:
  explicit TinyModel(const TinyModelOptions& options, const std::string& isa = "") {
    write_tiny_model(directory_ / "tiny.gguf", options);
    model_ = std::make_unique<Model>(directory_ / "tiny.gguf");
    if (isa.empty()) {
      unsetenv("FIRP_ISA");
    } else {
      setenv("FIRP_ISA", isa.c_str(), 1);
    }
  }
  ~TinyModel() { unsetenv("FIRP_ISA"); }
  const Model& operator*() const { return *model_; }

 private:
  TemporaryDirectory directory_;
  std::unique_ptr<Model> model_;
};

inline std::vector<Token> random_tokens(int count, int vocabulary, std::mt19937& random) {
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = static_cast<Token>(random() % vocabulary);
  return tokens;
}

/// With adapters, and without a sequential head.
inline Heads random_heads(const ModelConfig& config, const std::vector<int>& layers,
                          std::uint32_t seed, bool token_input = false) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  Heads heads;
  constexpr int kRank = 5;
  for (int layer = std::ranges::min(layers); layer < config.layers; ++layer) {
    Adapter adapter = {.layer = layer, .rank = kRank, .down = {}, .up = {}};
    for (int i = 0; i < kRank * config.hidden_size; ++i) {
      adapter.down.push_back(0.125f * static_cast<float>(static_cast<int>(random() % 9) - 4));
      adapter.up.push_back(0.125f * static_cast<float>(static_cast<int>(random() % 9) - 4));
    }
    heads.adapters.push_back(std::move(adapter));
  }
  for (const int layer : layers) {
    DraftMap map;
    map.layer = layer;
    const int d = config.hidden_size;
    map.weight.resize(static_cast<std::size_t>(d) * d);
    for (float& w : map.weight) {
      w = ggml_fp16_to_fp32(ggml_fp32_to_fp16(normal(random) / std::sqrt(static_cast<float>(d))));
    }
    for (int i = 0; i < d; ++i) map.bias.push_back(0.1f * normal(random));
    if (token_input) map.token.assign(map.weight.rbegin(), map.weight.rend());
    heads.steps.push_back(std::move(map));
  }
  return heads;
}

/// Gives every step a sequential head.
inline void add_sequential_heads(Heads& heads, int rank, std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto eighths = [&](int n) {
    std::vector<float> values(n);
    for (float& value : values) value = 0.125f * static_cast<float>(int(random() % 9) - 4);
    return values;
  };
  for (DraftMap& step : heads.steps) {
    const auto d = static_cast<int>(step.bias.size());
    step.sequence = SequentialHead{.rank = rank,
                                   .state = eighths(rank * d),
                                   .token = eighths(rank * d),
                                   .bias = eighths(rank),
                                   .output = eighths(d * rank)};
  }
}

inline std::vector<float> copied(std::span<const float> values) {
  return {values.begin(), values.end()};
}

/// Commits `tokens` in chunks of `chunk` rows.
inline void append(Engine& engine, int sequence, std::span<const Token> tokens, int chunk) {
  while (!tokens.empty()) {
    const auto count = std::min(tokens.size(), static_cast<std::size_t>(chunk));
    engine.forward(token_chain(sequence, tokens.first(count))).commit(sequence, first_rows(count));
    tokens = tokens.subspan(count);
  }
}

/// Logits of a row that was alone in its pass, on the context that `sequence` has; the row is
/// committed.
inline std::vector<float> logits_alone(Engine& engine, int sequence, Token token) {
  const Pass pass = engine.forward(token_chain(sequence, {&token, 1}));
  const std::vector<float> logits = copied(pass.logits(std::vector<int>{0}));
  pass.commit(sequence, std::vector<int>{0});
  return logits;
}

inline bool bits_equal(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

}  // namespace firp
