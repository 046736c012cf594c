#include "train/upper_layers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <random>
#include <set>

#include "engine/native_engine.h"
#include "model/test_files.h"
#include "model/tiny_model.h"
#include "train/evaluation.h"
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

Maps random_maps(int layer, int steps, int d, bool token_input) {
  torch::manual_seed(7);
  Maps maps{layer, torch::zeros(d), torch::ones(d), torch::randn({steps, d, d}) / std::sqrt(d),
            torch::randn({steps, d}) * 0.1};
  if (token_input) maps.token = TokenInput{1, torch::randn({steps, d, d}) / std::sqrt(d)};
  return maps;
}

float largest_difference(const torch::Tensor& ours, std::span<const float> engine) {
  const torch::Tensor expected =
      torch::from_blob(const_cast<float*>(engine.data()), {ours.size(0)}, torch::kFloat32);
  return (ours - expected).abs().max().item<float>();
}

/// The engine's logits have a cap that head() leaves out.
torch::Tensor capped(const torch::Tensor& logits, const ModelConfig& config) {
  const float cap = config.logit_softcap;
  return cap > 0 ? torch::tanh(logits / cap) * cap : logits;
}

struct Case {
  const char* name;
  TinyModelOptions options;
  bool token_input = false;
  int layer = 1;
  HeadsMethod method = HeadsMethod::kFirp;
};

std::vector<Case> cases() {
  std::vector<Case> out;
  for (const char* architecture : {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2",
                                   "smollm3", "granite", "qwen3moe", "olmoe", "granitemoe"}) {
    out.push_back({architecture, {.architecture = architecture}});
  }
  out.push_back({"token_input", {.architecture = "llama"}, true});
  const int end = TinyModelOptions().layers;
  out.push_back({"last_layer", {.architecture = "llama"}, true, end});
  out.push_back({"windows", {.architecture = "gemma3", .layers = 7}, true});
  out.push_back({"partly_turned", {.architecture = "phi3", .rope_dimensions = 48}});
  out.push_back({"unturned", {.architecture = "smollm3", .layers = 5}});
  out.push_back({"medusa", {.architecture = "qwen3"}, false, end, HeadsMethod::kMedusa});
  out.push_back({"tied", {.architecture = "qwen2", .tied_head = true}, true});
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
  constexpr int kSteps = 4;
  const int layer = GetParam().layer;
  const TinyFile file(GetParam().options);
  const Model model(file.path);
  const int d = model.config().hidden_size;
  NativeEngine engine(model,
                      {.threads = 1, .context = 256, .max_rows = 256, .rough_drafts = false});
  Maps maps = random_maps(layer, kSteps, d, GetParam().token_input);
  maps.method = GetParam().method;
  const Heads heads = to_heads(maps, model.identity());
  engine.set_heads(heads);

  const Text text{.tokens = random_tokens(91, model.config().vocabulary_size, 3),
                  .answer_begin = 20};
  const UpperLayers upper(model, layer, torch::kCPU, torch::kFloat32);
  const TeacherText teacher = run_teacher(engine, upper, text);
  ASSERT_EQ(teacher.first_anchor, 19);
  ASSERT_EQ(teacher.end_anchor, 89);

  const std::vector<int> anchors = {19, 40, 70, 88};
  std::vector<std::int64_t> hidden_rows;
  for (const int anchor : anchors) hidden_rows.push_back(anchor - teacher.first_anchor);
  const torch::Tensor picked = torch::tensor(hidden_rows);
  const torch::Tensor behind = tokens_behind(text.tokens, teacher.hidden.size(0));
  const torch::Tensor states = upper.final_states(
      from_heads(heads), teacher.hidden.index_select(0, picked),
      upper.embeddings(behind.index_select(0, picked)),
      torch::tensor(anchors, torch::kInt64).unsqueeze(0), teacher.context.unsqueeze(2))[0];

  // The engine: all tokens in one pass, a pseudo chain on each anchor.
  const int sequence = engine.add_sequence();
  std::vector<Row> batch;
  for (int i = 0; i < 90; ++i) {
    batch.push_back({.sequence = sequence, .parent = i - 1, .token = text.tokens[i]});
  }
  std::vector<std::vector<int>> chains;
  for (const int anchor : anchors) {
    int parent = anchor;
    chains.emplace_back();
    for (int step = 1; step <= kSteps; ++step) {
      batch.push_back({.sequence = sequence,
                       .parent = parent,
                       .step = step,
                       .token_behind = text.tokens[anchor + 1]});
      parent = static_cast<int>(batch.size()) - 1;
      chains.back().push_back(parent);
    }
  }
  const Pass pass = engine.forward(batch);
  for (std::size_t a = 0; a < anchors.size(); ++a) {
    for (int step = 0; step < kSteps; ++step) {
      EXPECT_LT(largest_difference(states[a][step], pass.final_state(chains[a][step])), 5e-3)
          << "anchor " << anchors[a] << " step " << step + 1;
    }
  }
  // And the head.
  const std::vector<int> last = {chains[1][3]};
  const torch::Tensor logits = capped(torch::mv(upper.head(), states[1][3]), model.config());
  EXPECT_LT(largest_difference(logits, pass.logits(last)), 2e-2);
}

// Rows that are the real hidden states must come out as the real rows do: the chain p_{i,1..j} then
// stands for the tokens behind i.
TEST_P(UpperLayersTest, RealStatesPassLikeRealRows) {
  constexpr int kLayer = 2, kSteps = 5;
  const TinyFile file(GetParam().options);
  const Model model(file.path);
  NativeEngine engine(model, {.threads = 1, .context = 256, .max_rows = 32, .rough_drafts = false});
  const Text text{.tokens = random_tokens(60, model.config().vocabulary_size, 5),
                  .answer_begin = 9};
  const UpperLayers upper(model, kLayer, torch::kCPU, torch::kFloat32);
  const TeacherText teacher = run_teacher(engine, upper, text);
  const int anchor = 33;
  const torch::Tensor rows =
      teacher.hidden.narrow(0, anchor + 1 - teacher.first_anchor, kSteps).view({1, 1, kSteps, -1});
  const torch::Tensor states = upper.forward(kLayer, rows, torch::tensor({{std::int64_t{anchor}}}),
                                             teacher.context.unsqueeze(2))[0][0];
  const torch::Tensor logits = capped(torch::linear(states, upper.head()), model.config());
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

// Adapters by their formula, before the first layer: the same as rows that were changed beforehand.
TEST(UpperLayers, AdaptersChangeTheRowsBeforeEachLayer) {
  const TinyFile file({.architecture = "llama"});
  const Model model(file.path);
  const int d = model.config().hidden_size;
  NativeEngine engine(model, {.threads = 1, .context = 256, .max_rows = 64, .rough_drafts = false});
  const Text text{.tokens = random_tokens(40, model.config().vocabulary_size, 5),
                  .answer_begin = 12};
  const UpperLayers upper(model, 1, torch::kCPU, torch::kFloat32);
  const TeacherText teacher = run_teacher(engine, upper, text);
  const torch::Tensor context = teacher.context.unsqueeze(2);
  const torch::Tensor anchors = torch::tensor({{std::int64_t{20}}});
  torch::manual_seed(1);
  const torch::Tensor rows = torch::randn({1, 1, 2, d}) * 3;
  Adapters adapters = Adapters::initial(upper.layers(), 4, d, 1);
  const torch::Tensor plain = upper.forward(1, rows, anchors, context);
  EXPECT_TRUE(torch::equal(upper.forward(1, rows, anchors, context, adapters), plain));

  adapters.up[0].normal_();
  const torch::Tensor x = rows / rows.square().mean(-1, true).sqrt();
  const torch::Tensor inner = torch::matmul(x, adapters.down[0].t());
  const torch::Tensor changed =
      rows + torch::matmul(inner * torch::sigmoid(inner), adapters.up[0].t());
  const torch::Tensor expected = upper.forward(1, changed, anchors, context);
  const torch::Tensor adapted = upper.forward(1, rows, anchors, context, adapters);
  EXPECT_LT((adapted - expected).abs().max().item<float>(), 1e-3);
  EXPECT_GT((adapted - plain).abs().max().item<float>(), 0.1);
  adapters.up[upper.layers() - 1].normal_();
  EXPECT_GT(
      (upper.forward(1, rows, anchors, context, adapters) - adapted).abs().max().item<float>(),
      0.1);
}

// What drafts propose: the head's own best tokens, of the draft vocabulary only; ranked anew by a
// sequential head behind each token.
TEST(Drafts, AreOfTheVocabularyAndRankedBehindTheTokenBefore) {
  const TinyFile file({.architecture = "llama"});
  const Model model(file.path);
  const int d = model.config().hidden_size;
  NativeEngine engine(model, {.threads = 1, .context = 256, .max_rows = 64, .rough_drafts = false});
  const Text text{.tokens = random_tokens(40, model.config().vocabulary_size, 5),
                  .answer_begin = 30};
  const UpperLayers upper(model, 1, torch::kCPU, torch::kFloat32);
  const TeacherText teacher = run_teacher(engine, upper, text);
  Maps maps = random_maps(1, 2, d, /*token_input=*/true);
  maps.sequence = SequentialHeads::initial(2, 8, d, 1, 1, 1);
  maps.sequence->output.normal_();

  const TextDrafts all = draft_text(upper, maps, teacher, teacher.hidden);
  ASSERT_EQ(all.candidates.size(), static_cast<std::size_t>(teacher.anchors()));
  ASSERT_EQ(all.candidates[3][1].size(), static_cast<std::size_t>(kRankedCandidates));
  // Every second token, the best left out.
  const Token best = all.candidates[3][1].front().token;
  std::vector<std::int32_t> vocabulary;
  for (int token = 100; token < 300; token += 2) {
    if (token != best) vocabulary.push_back(token);
  }
  const TextDrafts some = draft_text(upper, maps, teacher, teacher.hidden, vocabulary);
  for (const auto& steps : some.candidates) {
    for (const auto& candidates : steps) {
      ASSERT_EQ(candidates.size(), static_cast<std::size_t>(kRankedCandidates));
      for (const Candidate& candidate : candidates) {
        EXPECT_EQ(std::ranges::count(vocabulary, candidate.token), 1);
      }
    }
  }

  const std::vector<Token> before = {7, 8};
  const auto ranked = continuations(upper, maps, all, 3)(2, before);
  ASSERT_EQ(ranked.size(), 2u);
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(ranked[i].size(), static_cast<std::size_t>(kRankedCandidates));
    double sum = 0;
    std::set<Token> tokens;
    for (std::size_t k = 0; k < ranked[i].size(); ++k) {
      EXPECT_LE(ranked[i][k].log_probability, ranked[i][k == 0 ? 0 : k - 1].log_probability);
      sum += std::exp(ranked[i][k].log_probability);
      tokens.insert(ranked[i][k].token);
    }
    double mass = 0;
    for (const Candidate& candidate : all.candidates[3][1]) {
      EXPECT_TRUE(tokens.contains(candidate.token));
      mass += std::exp(candidate.log_probability);
    }
    EXPECT_NEAR(sum, mass, 1e-4);
    EXPECT_LT(mass, 0.99);
  }
  EXPECT_NE(ranked[0].front().log_probability, ranked[1].front().log_probability);
}

INSTANTIATE_TEST_SUITE_P(Models, UpperLayersTest, ::testing::ValuesIn(cases()),
                         [](const auto& tested) { return std::string(tested.param.name); });

// The gradient that reaches the rows, against differences, through attention, norms and RoPE.
TEST(UpperLayers, Gradient) {
  const TinyFile file({.architecture = "qwen3"});
  const Model model(file.path);
  const int d = model.config().hidden_size;
  NativeEngine engine(model, {.threads = 1, .context = 256, .max_rows = 64, .rough_drafts = false});
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
