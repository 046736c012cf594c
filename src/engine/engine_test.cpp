#include "engine/engine.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>

#include "kernels/kernels.h"
#include "model/error.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

/// A tiny model on disk for as long as the test runs, and the instruction set that it runs with.
class TinyModel {
 public:
  explicit TinyModel(const TinyModelOptions& options, const std::string& isa = "") {
    std::string pattern = (std::filesystem::temp_directory_path() / "firp-engine-XXXXXX").string();
    directory_ = mkdtemp(pattern.data());
    write_tiny_model(directory_ / "tiny.gguf", options);
    model_ = std::make_unique<Model>(directory_ / "tiny.gguf");
    if (isa.empty()) {
      unsetenv("FIRP_ISA");
    } else {
      setenv("FIRP_ISA", isa.c_str(), 1);
    }
  }
  ~TinyModel() {
    unsetenv("FIRP_ISA");
    std::filesystem::remove_all(directory_);
  }
  const Model& operator*() const { return *model_; }

 private:
  std::filesystem::path directory_;
  std::unique_ptr<Model> model_;
};

std::vector<Token> random_tokens(int count, int vocabulary, std::mt19937& random) {
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = static_cast<Token>(random() % vocabulary);
  return tokens;
}

Heads random_heads(const ModelConfig& config, const std::vector<int>& layers, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  Heads heads;
  for (const int layer : layers) {
    DraftMap map;
    map.layer = layer;
    const int d = config.hidden_size;
    map.weight.resize(static_cast<std::size_t>(d) * d);
    for (float& w : map.weight) {
      w = ggml_fp16_to_fp32(ggml_fp32_to_fp16(normal(random) / std::sqrt(static_cast<float>(d))));
    }
    for (int i = 0; i < d; ++i) map.bias.push_back(0.1f * normal(random));
    heads.steps.push_back(std::move(map));
  }
  return heads;
}

/// Commits `tokens` in chunks of `chunk` rows.
void append(Engine& engine, int sequence, std::span<const Token> tokens, int chunk) {
  for (std::size_t first = 0; first < tokens.size(); first += chunk) {
    std::vector<Row> rows;
    std::vector<int> path;
    for (std::size_t i = first; i < std::min(tokens.size(), first + chunk); ++i) {
      const int index = static_cast<int>(i - first);
      rows.push_back({.sequence = sequence,
                      .position = engine.length(sequence) + index,
                      .parent = index - 1,
                      .token = tokens[i]});
      path.push_back(index);
    }
    engine.forward(rows);
    engine.commit(sequence, path);
  }
}

/// Logits of a row that was alone in its pass, on the context that `sequence` has; the row is
/// committed.
std::vector<float> logits_alone(Engine& engine, int sequence, Token token) {
  engine.forward(std::vector<Row>{
      {.sequence = sequence, .position = engine.length(sequence), .token = token}});
  const std::span<const float> logits = engine.logits(std::vector<int>{0});
  const std::vector<float> result(logits.begin(), logits.end());
  engine.commit(sequence, std::vector<int>{0});
  return result;
}

bool bits_equal(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// The law: logits of a position do not depend on whether it was computed alone, in a tree with
/// pseudo rows beside it, or in a prefill chunk; nor on other sequences or the number of threads.
void expect_bit_equal_rows(const TinyModelOptions& options, const std::string& isa,
                           std::uint32_t seed) {
  SCOPED_TRACE(options.architecture + " " + ggml_type_name(options.type) + " " + isa);
  const TinyModel model(options, isa);
  std::mt19937 random(seed);
  Engine batched(*model, {.threads = 3, .context = 200, .max_rows = 128});
  Engine alone(*model, {.threads = 1, .context = 200, .max_rows = 1});
  ASSERT_EQ(batched.isa(), isa);
  // Steps that enter at different layers, a later step below an earlier one.
  batched.set_heads(random_heads((*model).config(), {2, 1, 2}, seed));
  const int vocabulary = options.vocabulary_size;
  const std::vector<Token> context =
      random_tokens(56 + static_cast<int>(random() % 12), vocabulary, random);
  const std::vector<Token> other = random_tokens(9, vocabulary, random);

  const int sequence = batched.add_sequence();
  const int neighbour = batched.add_sequence();
  append(batched, neighbour, other, 4);
  append(batched, sequence, context, 1 + static_cast<int>(random() % 40));
  const int reference = alone.add_sequence();
  append(alone, reference, context, 1);

  // A random tree below the context, a chain in the other sequence, pseudo rows below some nodes.
  std::vector<Row> rows;
  const int nodes = 1 + static_cast<int>(random() % 24);
  for (int i = 0; i < nodes; ++i) {
    const int parent = i == 0 ? kContext : static_cast<int>(random() % (i + 1)) - 1;
    const int position = parent == kContext ? batched.length(sequence) : rows[parent].position + 1;
    rows.push_back({.sequence = sequence,
                    .position = position,
                    .parent = parent,
                    .token = static_cast<Token>(random() % vocabulary)});
  }
  rows.push_back({.sequence = neighbour, .position = batched.length(neighbour), .token = 1});
  for (int node = 0; node < nodes; node += 2) {
    int parent = node;
    for (int step = 1; step <= 3; ++step) {
      rows.push_back({.sequence = sequence,
                      .position = rows[parent].position + 1,
                      .parent = parent,
                      .step = step});
      parent = static_cast<int>(rows.size()) - 1;
    }
  }
  batched.forward(rows);
  std::vector<int> all(nodes);
  for (int i = 0; i < nodes; ++i) all[i] = i;
  const std::span<const float> logits = batched.logits(all);

  for (int node = 0; node < nodes; ++node) {
    std::vector<Token> path;
    for (int i = node; i != kContext; i = rows[i].parent) path.insert(path.begin(), rows[i].token);
    append(alone, reference, std::span(path).first(path.size() - 1), 1);
    const std::vector<float> expected = logits_alone(alone, reference, path.back());
    ASSERT_TRUE(bits_equal(logits.subspan(static_cast<std::size_t>(node) * vocabulary, vocabulary),
                           expected))
        << "node " << node << " of " << nodes << " on a context of " << context.size();
    alone.truncate(reference, static_cast<int>(context.size()));
  }
}

constexpr ggml_type kTypes[] = {GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q4_0,
                                GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
                                GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K,
                                GGML_TYPE_Q6_K};

TEST(Engine, RowsAreBitEqualAloneInATreeAndInAChunk) {
  std::uint32_t seed = 1;
  for (const std::string& isa : available_isas()) {
    for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
      for (const ggml_type type : kTypes) {
        expect_bit_equal_rows({.architecture = architecture, .type = type}, isa, seed++);
      }
    }
    expect_bit_equal_rows({.type = GGML_TYPE_Q4_1,
                           .query_heads = 4,
                           .kv_heads = 2,
                           .head_size = 80,
                           .tied_head = true},
                          isa, seed++);
  }
}

TEST(Engine, CommittedTreeRowsEqualRowsThatWereRunAlone) {
  const TinyModel model({.type = GGML_TYPE_Q4_1});
  Engine engine(*model, {.threads = 2, .context = 100});
  std::mt19937 random(5);
  const std::vector<Token> context = random_tokens(60, 320, random);
  const int tree = engine.add_sequence();
  const int plain = engine.add_sequence();
  append(engine, tree, context, 60);
  append(engine, plain, context, 60);
  // Nodes 0 - 2 - 4 are accepted; 1 and 3 are other branches.
  const std::vector<Token> tokens = {5, 6, 7, 8, 9};
  const std::vector<int> parents = {kContext, 0, 0, 1, 2};
  std::vector<Row> rows;
  for (int i = 0; i < 5; ++i) {
    const int position = parents[i] == kContext ? 60 : rows[parents[i]].position + 1;
    rows.push_back(
        {.sequence = tree, .position = position, .parent = parents[i], .token = tokens[i]});
  }
  engine.forward(rows);
  engine.commit(tree, std::vector<int>{0, 2, 4});
  append(engine, plain, std::vector<Token>{5, 7, 9}, 1);
  ASSERT_EQ(engine.length(tree), engine.length(plain));
  for (Token token = 20; token < 26; ++token) {
    const std::vector<float> a = logits_alone(engine, tree, token);
    const std::vector<float> b = logits_alone(engine, plain, token);
    ASSERT_TRUE(bits_equal(a, b));
  }
}

TEST(Engine, DeferredPseudoRowsEqualThoseOfTheSamePass) {
  for (const std::vector<int>& layers : {std::vector<int>{1, 1, 1}, {2, 1, 2}, {1, 2, 2}}) {
    const TinyModel model({.type = GGML_TYPE_Q8_0});
    Engine engine(*model, {.threads = 2, .context = 100});
    engine.set_heads(random_heads((*model).config(), layers, 3));
    std::mt19937 random(6);
    const int sequence = engine.add_sequence();
    append(engine, sequence, random_tokens(62, 320, random), 31);

    std::vector<Row> rows = {{.sequence = sequence, .position = 62, .token = 3},
                             {.sequence = sequence, .position = 63, .parent = 0, .token = 4}};
    for (int step = 1; step <= 3; ++step) {
      rows.push_back({.sequence = sequence, .position = 63 + step, .parent = step, .step = step});
    }
    engine.forward(rows, std::vector<int>{1, 2});
    std::vector<std::vector<float>> expected, sources;
    for (int row = 2; row < 5; ++row) {
      const std::span<const float> state = engine.final_state(row);
      expected.emplace_back(state.begin(), state.end());
      const std::span<const float> h = engine.hidden(1, layers[row - 2]);
      sources.emplace_back(h.begin(), h.end());
    }
    engine.commit(sequence, std::vector<int>{0, 1});

    rows.clear();
    for (int step = 1; step <= 3; ++step) {
      rows.push_back({.sequence = sequence,
                      .position = 63 + step,
                      .parent = step - 2,
                      .step = step,
                      .source = sources[step - 1]});
    }
    engine.forward(rows);
    for (int row = 0; row < 3; ++row) {
      EXPECT_TRUE(bits_equal(engine.final_state(row), expected[row])) << "step " << row + 1;
    }
    EXPECT_FALSE(bits_equal(expected[0], expected[1]));
  }
}

TEST(Engine, BatchesThatBreakTheRulesAreRefused) {
  const TinyModel model({.layers = 2});
  Engine engine(*model, {.threads = 1, .context = 4, .max_rows = 8});
  const int sequence = engine.add_sequence();
  const auto refused = [&](std::vector<Row> rows) {
    EXPECT_THROW(engine.forward(rows), std::invalid_argument);
  };
  refused({});
  refused(std::vector<Row>(9, {.sequence = sequence, .token = 1}));
  refused({{.sequence = 7, .token = 1}});
  refused({{.sequence = sequence, .token = 320}});
  refused({{.sequence = sequence, .token = -1}});
  refused({{.sequence = sequence, .position = 1, .token = 1}});
  refused({{.sequence = sequence, .position = 0, .parent = 0, .token = 1}});
  refused({{.sequence = sequence, .token = 1}, {.sequence = sequence, .parent = 0, .token = 1}});
  refused({{.sequence = sequence, .step = 1}});
  engine.set_heads(random_heads((*model).config(), {1, 1}, 1));
  refused({{.sequence = sequence, .step = 1}});  // no source
  refused({{.sequence = sequence, .token = 1},
           {.sequence = sequence, .position = 1, .parent = 0, .step = 2}});
  append(engine, sequence, std::vector<Token>{1, 2, 3, 4}, 4);
  EXPECT_THROW(engine.forward(std::vector<Row>{{.sequence = sequence, .position = 4, .token = 1}}),
               Error);
  EXPECT_THROW(engine.set_heads(random_heads((*model).config(), {2}, 1)), Error);
  EXPECT_THROW(Engine(*model, {.threads = -1}), Error);
}

}  // namespace
}  // namespace firp
