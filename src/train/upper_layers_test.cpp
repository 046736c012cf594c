#include "train/upper_layers.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <random>

#include "engine/engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"
#include "train/maps.h"
#include "train/teacher.h"

namespace firp {
namespace {

// A model file that goes away with the test.
struct TinyFile {
  explicit TinyFile(const TinyModelOptions& options) { write_tiny_model(path, options); }
  TemporaryDirectory directory;
  std::filesystem::path path = directory / "tiny.gguf";
};

std::vector<Token> random_tokens(int count, int vocabulary, int seed) {
  std::mt19937 generator(seed);
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = static_cast<Token>(generator() % vocabulary);
  return tokens;
}

Maps random_maps(int layer, int steps, int d) {
  torch::manual_seed(7);
  return {layer, torch::zeros(d), torch::ones(d), torch::randn({steps, d, d}) / std::sqrt(d),
          torch::randn({steps, d}) * 0.1};
}

float largest_difference(const torch::Tensor& ours, std::span<const float> engine) {
  const torch::Tensor expected =
      torch::from_blob(const_cast<float*>(engine.data()), {ours.size(0)}, torch::kFloat32);
  return (ours - expected).abs().max().item<float>();
}

struct Case {
  const char* name;
  TinyModelOptions options;
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    out.push_back({architecture, {.architecture = architecture}});
  }
  out.push_back({"tied", {.architecture = "qwen2", .tied_head = true}});
  out.push_back({"group3", {.architecture = "llama", .query_heads = 6, .kv_heads = 2}});
  out.push_back({"head128", {.architecture = "qwen3", .kv_heads = 1, .head_size = 128}});
  out.push_back({"yarn",
                 {.architecture = "llama",
                  .rope_scaling = "yarn",
                  .rope_scaling_factor = 4,
                  .rope_original_context = 64}});
  out.push_back({"factors", {.architecture = "llama", .rope_frequency_factors = true}});
  return out;
}

class UpperLayersTest : public ::testing::TestWithParam<Case> {};

// Training and decoding must mean the same thing: the engine's pseudo rows, made by heads and run
// under its own mask, against ours, for anchors at several depths of a context.
TEST_P(UpperLayersTest, PseudoRowsAreTheEngines) {
  constexpr int kLayer = 1, kSteps = 4;
  const TinyFile file(GetParam().options);
  const Model model(file.path);
  const int d = model.config().hidden_size;
  Engine engine(model, {.threads = 1, .context = 256, .max_rows = 256});
  const Heads heads = to_heads(random_maps(kLayer, kSteps, d), model.identity());
  engine.set_heads(heads);

  const Text text{.tokens = random_tokens(91, model.config().vocabulary_size, 3),
                  .answer_begin = 20};
  const UpperLayers upper(model, kLayer, torch::kCPU, torch::kFloat32);
  const TeacherText teacher = run_teacher(engine, upper, text);
  ASSERT_EQ(teacher.first_anchor, 19);
  ASSERT_EQ(teacher.end_anchor, 89);

  const std::vector<int> anchors = {19, 40, 70, 88};
  std::vector<std::int64_t> hidden_rows;
  for (const int anchor : anchors) hidden_rows.push_back(anchor - teacher.first_anchor);
  const torch::Tensor rows =
      from_heads(heads).rows(teacher.hidden.index_select(0, torch::tensor(hidden_rows)));
  const torch::Tensor states =
      upper.forward(kLayer, rows.unsqueeze(0), torch::tensor(anchors, torch::kInt64).unsqueeze(0),
                    teacher.context.unsqueeze(2))[0];

  // The engine: all tokens in one pass, a pseudo chain on each anchor.
  const int sequence = engine.add_sequence();
  std::vector<Row> batch;
  for (int i = 0; i < 90; ++i) {
    batch.push_back(
        {.sequence = sequence, .position = i, .parent = i - 1, .token = text.tokens[i]});
  }
  std::vector<std::vector<int>> chains;
  for (const int anchor : anchors) {
    int parent = anchor;
    chains.emplace_back();
    for (int step = 1; step <= kSteps; ++step) {
      batch.push_back(
          {.sequence = sequence, .position = anchor + step, .parent = parent, .step = step});
      parent = static_cast<int>(batch.size()) - 1;
      chains.back().push_back(parent);
    }
  }
  engine.forward(batch);
  for (std::size_t a = 0; a < anchors.size(); ++a) {
    for (int step = 0; step < kSteps; ++step) {
      EXPECT_LT(largest_difference(states[a][step], engine.final_state(chains[a][step])), 5e-3)
          << "anchor " << anchors[a] << " step " << step + 1;
    }
  }
  // And the head.
  const std::vector<int> last = {chains[1][3]};
  const torch::Tensor logits = torch::mv(upper.head(), states[1][3]);
  EXPECT_LT(largest_difference(logits, engine.logits(last)), 2e-2);
}

// Rows that are the real hidden states must come out as the real rows do: the chain p_{i,1..j} then
// stands for the tokens behind i.
TEST_P(UpperLayersTest, RealStatesPassLikeRealRows) {
  constexpr int kLayer = 2, kSteps = 5;
  const TinyFile file(GetParam().options);
  const Model model(file.path);
  Engine engine(model, {.threads = 1, .context = 256, .max_rows = 32});
  const Text text{.tokens = random_tokens(60, model.config().vocabulary_size, 5),
                  .answer_begin = 9};
  const UpperLayers upper(model, kLayer, torch::kCPU, torch::kFloat32);
  const TeacherText teacher = run_teacher(engine, upper, text);
  const int anchor = 33;
  const torch::Tensor rows =
      teacher.hidden.narrow(0, anchor + 1 - teacher.first_anchor, kSteps).view({1, 1, kSteps, -1});
  const torch::Tensor states = upper.forward(kLayer, rows, torch::tensor({{std::int64_t{anchor}}}),
                                             teacher.context.unsqueeze(2))[0][0];
  const torch::Tensor logits = torch::linear(states, upper.head());
  const torch::Tensor probabilities = torch::softmax(logits, 1);
  for (int step = 1; step <= kSteps; ++step) {
    const int row = anchor + step - teacher.first_anchor;
    const torch::Tensor ids = teacher.top_ids[row].to(torch::kInt64);
    const torch::Tensor ours = probabilities[step - 1].index_select(0, ids);
    EXPECT_LT((ours - teacher.top_probabilities[row]).abs().max().item<float>(), 2e-3)
        << "step " << step;
    EXPECT_GT(teacher.top_probabilities[row][0].item<float>(), 0.02);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, UpperLayersTest, ::testing::ValuesIn(cases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// The gradient that reaches the rows, against differences, through attention, norms and RoPE.
TEST(UpperLayers, Gradient) {
  const TinyFile file({.architecture = "qwen3"});
  const Model model(file.path);
  const int d = model.config().hidden_size;
  Engine engine(model, {.threads = 1, .context = 256, .max_rows = 64});
  const Text text{.tokens = random_tokens(40, model.config().vocabulary_size, 5),
                  .answer_begin = 12};
  const UpperLayers upper(model, 1, torch::kCPU, torch::kFloat32);
  const TeacherText teacher = run_teacher(engine, upper, text);
  torch::manual_seed(1);
  const torch::Tensor anchors = torch::tensor({{std::int64_t{20}, std::int64_t{30}}});
  const torch::Tensor rows = torch::randn({1, 2, 3, d});
  const torch::Tensor direction = torch::randn({1, 2, 3, d});
  const torch::Tensor weights = torch::randn({1, 2, 3, d});
  const auto value = [&](const torch::Tensor& x) {
    return (upper.forward(1, x, anchors, teacher.context.unsqueeze(2)) * weights).sum();
  };
  torch::Tensor x = rows.clone().requires_grad_(true);
  const torch::Tensor gradient = torch::autograd::grad({value(x)}, {x})[0];
  const double expected = (gradient * direction).sum().item<double>();
  constexpr double kStep = 1e-2;
  const double measured =
      (value(rows + kStep * direction) - value(rows - kStep * direction)).item<double>() /
      (2 * kStep);
  EXPECT_NEAR(measured, expected, 0.01 * std::abs(expected) + 0.05);
}

}  // namespace
}  // namespace firp
