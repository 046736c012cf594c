// The forward pass against libllama's on the same file.

#include <fmt/ranges.h>
#include <gtest/gtest.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <memory>
#include <random>
#include <sstream>
#include <string>

#include "engine/llama_engine.h"
#include "engine/native_engine.h"
#include "engine/token_chain.h"
#include "model/tensor_types.h"
#include "model/test_files.h"
#include "model/test_parts.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

struct Directory {
  Directory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "firp-oracle-XXXXXX").string();
    path = mkdtemp(pattern.data());
  }
  ~Directory() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

/// Of the tokens from `first` on.
std::vector<float> llama_logits(const std::filesystem::path& path, std::span<const Token> tokens,
                                ggml_type cache_type = GGML_TYPE_F16, int context_size = 0,
                                std::size_t first = 0) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params model_parameters = llama_model_default_params();
  model_parameters.n_gpu_layers = 0;
  const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
      llama_model_load_from_file(path.c_str(), model_parameters), llama_model_free);
  if (!model) throw std::runtime_error("libllama cannot load " + path.string());
  llama_context_params parameters = llama_context_default_params();
  parameters.n_ctx = context_size > 0 ? context_size : static_cast<std::uint32_t>(tokens.size());
  parameters.n_batch = parameters.n_ubatch = static_cast<std::uint32_t>(tokens.size());
  parameters.n_threads = parameters.n_threads_batch = 1;
  parameters.type_k = parameters.type_v = cache_type;
  // Without it ggml rounds the attention weights to F16, too.
  parameters.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  const std::unique_ptr<llama_context, decltype(&llama_free)> context(
      llama_init_from_model(model.get(), parameters), llama_free);
  llama_batch batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 1);
  batch.n_tokens = static_cast<std::int32_t>(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = static_cast<llama_pos>(i);
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = i >= first;
  }
  const int status = llama_decode(context.get(), batch);
  llama_batch_free(batch);
  if (status != 0) throw std::runtime_error("llama_decode failed");
  const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
  const float* const logits = llama_get_logits(context.get());
  return {logits, logits + (tokens.size() - first) * vocabulary};
}

std::vector<float> logits_of(Engine& engine, std::span<const Token> tokens, std::size_t first = 0) {
  const int sequence = engine.add_sequence();
  const Pass pass = engine.forward(token_chain(sequence, tokens));
  std::vector<int> rows = first_rows(tokens.size());
  rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(first));
  const std::span<const float> logits = pass.logits(rows);
  return {logits.begin(), logits.end()};
}

std::vector<float> our_logits(const Model& model, std::span<const Token> tokens,
                              CacheType cache_type = CacheType::kF16, std::size_t first = 0) {
  NativeEngine engine(model, {.threads = 2,
                              .context = static_cast<int>(tokens.size()),
                              .max_rows = static_cast<int>(tokens.size()),
                              .cache_type = cache_type});
  return logits_of(engine, tokens, first);
}
std::vector<float> our_logits(const std::filesystem::path& path, std::span<const Token> tokens,
                              CacheType cache_type = CacheType::kF16) {
  return our_logits(Model(path), tokens, cache_type);
}

double greatest_difference(std::span<const float> seen, std::span<const float> expected) {
  EXPECT_EQ(seen.size(), expected.size());
  double greatest = 0;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    greatest = std::max(greatest, std::abs(double(seen[i]) - expected[i]));
  }
  return greatest;
}

std::vector<Token> random_tokens(int count, int vocabulary) {
  std::mt19937 random(11);
  std::vector<Token> tokens(count);
  for (Token& token : tokens) token = static_cast<Token>(random() % vocabulary);
  return tokens;
}

// ggml rounds queries and sums of values to F16 (2^-11), so the absolute difference grows with the
// spread of the logits: here about 1. It also depends on ggml's instruction set: the largest of all
// cases is 1.5e-3 with its AVX2 kernels, and less with AVX-512.
TEST(Oracle, F32LogitsAgreeWithLibllama) {
  std::vector<TinyModelOptions> cases;
  for (const char* architecture : {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2",
                                   "smollm3", "granite", "qwen3moe", "olmoe", "granitemoe"}) {
    for (const bool tied : {false, true}) {
      // libllama asks OLMo 2 and OLMoE for a head of their own.
      if (tied && std::string_view(architecture).starts_with("olmo")) continue;
      cases.push_back({.architecture = architecture, .tied_head = tied});
    }
    cases.push_back({.architecture = architecture, .query_heads = 4, .kv_heads = 4});
    // It also wants OLMoE to have a KV head for each query head, and heads that fill the width.
    if (architecture == std::string_view("olmoe")) {
      cases[cases.size() - 2].kv_heads = 4;
      continue;
    }
    cases.push_back(
        {.architecture = architecture, .query_heads = 8, .kv_heads = 1, .head_size = 32});
    cases.push_back({.architecture = architecture,
                     .rope_scaling = "linear",
                     .rope_scaling_factor = 4,
                     .rope_original_context = 64});
    cases.push_back({.architecture = architecture,
                     .rope_scaling = "yarn",
                     .rope_scaling_factor = 4,
                     .rope_original_context = 64});
  }
  cases.push_back({.rope_base = 500000, .rope_frequency_factors = true});
  cases.push_back({.experts = 4});  // Mixtral
  cases.push_back({.architecture = "qwen3moe", .feed_forward_size = 96, .experts = 40});
  cases.push_back({.architecture = "phi3", .rope_dimensions = 48});
  cases.push_back({.architecture = "gemma3", .sliding_window = 0});
  cases.push_back({.architecture = "smollm3", .layers = 9});
  cases.push_back({.architecture = "gemma3", .layers = 7, .sliding_window = 100});
  const Directory directory;
  for (TinyModelOptions& options : cases) {
    options.logit_spread = 1;
    SCOPED_TRACE(options.architecture + " tied " + std::to_string(options.tied_head) + " heads " +
                 std::to_string(options.query_heads) + "/" + std::to_string(options.kv_heads) +
                 " scaling " + options.rope_scaling);
    const std::filesystem::path path = directory.path / "model.gguf";
    // ggml looks GELU up in a table of F16.
    const double bound = options.architecture.starts_with("gemma") ? 3e-3 : 1.6e-3;
    // Where a router's choice is a near tie, another expert is another model: then the next one.
    const bool is_mixture = options.experts > 0 || options.architecture.ends_with("moe");
    double greatest = 0, squares = 0;
    std::vector<float> expected;
    for (int models = is_mixture ? 3 : 1; models > 0; --models, ++options.seed) {
      write_tiny_model(path, options);
      const std::vector<Token> tokens = random_tokens(150, options.vocabulary_size);
      expected = llama_logits(path, tokens);
      greatest = greatest_difference(our_logits(path, tokens), expected);
      if (greatest <= bound) break;
    }
    for (const float logit : expected) squares += double(logit) * logit;
    const double rms = std::sqrt(squares / static_cast<double>(expected.size()));
    std::printf("%-6s scaling %-6s: max |difference| %.1e, logits' RMS %.2f\n",
                options.architecture.c_str(), options.rope_scaling.c_str(), greatest, rms);
    EXPECT_LE(greatest, bound);
    // A model whose logits are all alike would prove nothing.
    EXPECT_GE(rms, 0.5);
  }
}

/// Below the original context the short factors, above it the long ones, in both engines: the room
/// that ours has beside the context does not count.
TEST(Oracle, LongRopeFollowsTheContextInUseAsLibllamaDoes) {
  const Directory directory;
  const std::filesystem::path path = directory.path / "model.gguf";
  TinyModelOptions tiny = {.rope_scaling = "longrope", .rope_original_context = 512};
  tiny.logit_spread = 1;
  write_tiny_model(path, tiny);
  const std::vector<Token> tokens = random_tokens(150, tiny.vocabulary_size);
  const auto file = std::make_shared<const GgufFile>(path);
  const Model model(file);
  std::vector<std::vector<float>> of_context;
  for (const int context : {512, 513}) {
    const std::vector<float> expected = llama_logits(path, tokens, GGML_TYPE_F16, context);
    const EngineOptions options = {.threads = 1, .context = context, .max_rows = 150};
    NativeEngine native(model, options);
    EXPECT_LE(greatest_difference(logits_of(native, tokens), expected), 1.2e-3) << context;
    LlamaEngine llama(file, options, {.flash_attention = 1});
    EXPECT_LE(greatest_difference(logits_of(llama, tokens), expected), 1.2e-3) << context;
    of_context.push_back(expected);
  }
  EXPECT_GE(greatest_difference(of_context[0], of_context[1]), 0.05);
}

TEST(Oracle, AModelInSeveralFilesIsTheWholeOneInBothEngines) {
  const Directory directory;
  const std::filesystem::path whole = directory.path / "whole.gguf";
  write_tiny_model(whole, {.type = GGML_TYPE_Q8_0, .vocabulary_size = 320});
  const std::filesystem::path first = write_parts(whole, directory.path / "m", 3);
  const std::vector<Token> tokens = random_tokens(50, 320);
  EXPECT_EQ(our_logits(first, tokens), our_logits(whole, tokens));
  const auto of_llama_engine = [&](const std::filesystem::path& path) {
    LlamaEngine engine(std::make_shared<const GgufFile>(path),
                       {.threads = 1, .context = 50, .max_rows = 50}, {});
    return logits_of(engine, tokens);
  };
  EXPECT_EQ(of_llama_engine(first), of_llama_engine(whole));
}

// Quantised products differ from ggml's in one thing: how the activations are rounded to 8 bits
// (groups of 32 here; 32 or 256 in ggml). Each rounds a value by at most amax / 254, relative RMSE
// about 0.5-1 % a product; over the layers of these models two exact implementations then differ by
// a few percent of the logits' spread. A wrong scale, min or code order gives over 50 %.
TEST(Oracle, QuantisedLogitsAgreeAsFarAsRoundedActivationsAllow) {
  const Directory directory;
  for (const ggml_type type : kMatrixTypes) {
    if (type == GGML_TYPE_F32) continue;
    SCOPED_TRACE(ggml_type_name(type));
    const std::filesystem::path path = directory.path / "model.gguf";
    write_tiny_model(path, {.type = type});
    const std::vector<Token> tokens = random_tokens(100, 320);
    const std::vector<float> expected = llama_logits(path, tokens);
    const std::vector<float> seen = our_logits(path, tokens);
    double differences = 0, squares = 0;
    for (std::size_t i = 0; i < seen.size(); ++i) {
      differences += (double(seen[i]) - expected[i]) * (double(seen[i]) - expected[i]);
      squares += double(expected[i]) * expected[i];
    }
    const double relative = std::sqrt(differences / squares);
    std::printf("%s: relative RMSE of the logits %.4f\n", ggml_type_name(type), relative);
    EXPECT_LE(relative, 0.04);
  }
}

// Written for this test.
constexpr const char* kText =
    "A lighthouse keeper on a small island kept two books. In the first he wrote down the weather, "
    "the ships that passed, and how much oil the lamp had used. In the second he wrote down what "
    "he "
    "had thought about while he waited for the ships. After thirty years the first book was a "
    "shelf "
    "of books, and the second was still the same thin one, because on most nights he had thought "
    "about the oil.\n\nThe water cycle describes how water moves between the oceans, the air and "
    "the land. Heat from the sun evaporates water from the surface of seas and lakes. As the "
    "vapour "
    "rises it cools and condenses into clouds, and when the droplets become heavy enough they fall "
    "as rain or snow. Some of that water runs off into rivers and flows back to the sea; some of "
    "it "
    "sinks into the ground and feeds springs and wells, where it can stay for thousands of years.\n"
    "\nTo sort a list of numbers, one can look for the smallest number, move it to the front, and "
    "then do the same with the rest of the list. This is simple, but slow: for a list of a "
    "thousand "
    "numbers it makes about half a million comparisons. A better way is to split the list into two "
    "halves, sort each of them in the same manner, and then merge the two sorted halves by always "
    "taking the smaller of their first numbers.";

struct Score {
  double perplexity;
  std::vector<Token> best;
};

Score score(std::span<const float> logits, std::span<const Token> tokens) {
  const std::size_t vocabulary = logits.size() / tokens.size();
  Score result{0, {}};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const std::span<const float> row = logits.subspan(i * vocabulary, vocabulary);
    const auto best = std::ranges::max_element(row);
    result.best.push_back(static_cast<Token>(best - row.begin()));
    if (i + 1 == tokens.size()) break;
    double sum = 0;
    for (const float logit : row) sum += std::exp(double(logit) - *best);
    result.perplexity -= row[tokens[i + 1]] - *best - std::log(sum);
  }
  result.perplexity = std::exp(result.perplexity / static_cast<double>(tokens.size() - 1));
  return result;
}

// The same bound on a real model, in the terms that matter: rounding the activations moves logits
// by about 1 % of their spread, so some near ties fall differently (we allow 5 % of the positions)
// and the mean log-likelihood moves by little, in either direction (we allow 0.5 %).
void expect_libllamas_perplexity_and_choices(const Score& seen, const Score& expected) {
  const auto positions = static_cast<double>(expected.best.size());
  int same = 0;
  for (std::size_t i = 0; i < expected.best.size(); ++i) same += seen.best[i] == expected.best[i];
  std::printf("perplexity %.4f, libllama's %.4f; top-1 agreement %.1f %% of %.0f positions\n",
              seen.perplexity, expected.perplexity, 100 * same / positions, positions);
  EXPECT_NEAR(seen.perplexity / expected.perplexity, 1, 0.005);
  EXPECT_GE(same / positions, 0.95);
}

TEST(Oracle, RealModelHasLibllamasPerplexityAndChoices) {
  const std::filesystem::path path = real_model();
  ASSERT_TRUE(std::filesystem::exists(path)) << path << " is missing: `make test` fetches it";
  const std::vector<Token> tokens = Vocabulary(path).tokenize(kText, true);
  ASSERT_GT(tokens.size(), 250u);
  expect_libllamas_perplexity_and_choices(score(our_logits(path, tokens), tokens),
                                          score(llama_logits(path, tokens), tokens));
}

std::filesystem::path gemma3() { return real_model().parent_path() / "gemma-3-270m-q4_k_m.gguf"; }

TEST(Oracle, Gemma3HasLibllamasPerplexityAndChoices) {
  const std::filesystem::path path = gemma3();
  if (!std::filesystem::exists(path)) {
    GTEST_SKIP() << path << " is not there; `make demo MODEL=gemma3` fetches it";
  }
  const std::vector<Token> tokens = Vocabulary(path).tokenize(kText, true);
  expect_libllamas_perplexity_and_choices(score(our_logits(path, tokens), tokens),
                                          score(llama_logits(path, tokens), tokens));
}

/// The words of kText in random order.
std::string shuffled_words(unsigned seed) {
  std::istringstream text(kText);
  std::vector<std::string> words(std::istream_iterator<std::string>(text), {});
  std::mt19937 random(seed);
  for (std::size_t i = words.size(); i > 1; --i) std::swap(words[i - 1], words[random() % i]);
  return fmt::format("{}\n\n", fmt::join(words, " "));
}

TEST(Oracle, Gemma3HasLibllamasPerplexityBeyondItsWindow) {
  const std::filesystem::path path = gemma3();
  if (!std::filesystem::exists(path)) {
    GTEST_SKIP() << path << " is not there; `make demo MODEL=gemma3` fetches it";
  }
  const Model model(path);
  const Vocabulary vocabulary(path);
  // A text that can't be copied from what stands before it.
  std::string before;
  for (unsigned seed = 1; seed <= 6; ++seed) before += shuffled_words(seed);
  std::vector<Token> tokens = vocabulary.tokenize(before, true);
  ASSERT_GE(tokens.size(), 1250u);
  const std::size_t first = tokens.size();
  const std::vector<Token> text = vocabulary.tokenize(kText, false);
  tokens.insert(tokens.end(), text.begin(), text.end());
  const Score expected = score(llama_logits(path, tokens, GGML_TYPE_F16, 0, first), text);
  const Score seen = score(our_logits(model, tokens, CacheType::kF16, first), text);
  expect_libllamas_perplexity_and_choices(seen, expected);

  // Layers that see everything would be found out.
  ModelConfig config = model.config();
  for (LayerConfig& layer : config.by_layer) layer.window = 0;
  const Model without(config, {.token_embedding = &model.token_embedding(),
                               .output_norm = &model.output_norm(),
                               .head = &model.head(),
                               .layers = model.layers()});
  const Score blind = score(our_logits(without, tokens, CacheType::kF16, first), text);
  std::printf("without windows: perplexity %.4f\n", blind.perplexity);
  EXPECT_GE(std::abs(blind.perplexity / expected.perplexity - 1), 0.02);
}

/// Root mean square difference of two sets of logits over the second's spread.
double relative_error(std::span<const float> seen, std::span<const float> expected) {
  double differences = 0, squares = 0, mean = 0;
  for (const float logit : expected) mean += logit / static_cast<double>(expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    differences += (double(seen[i]) - expected[i]) * (double(seen[i]) - expected[i]);
    squares += (expected[i] - mean) * (expected[i] - mean);
  }
  return std::sqrt(differences / squares);
}

// Keys and values of 8 bits move the logits no more than libllama's do.
TEST(Oracle, Q8CacheIsAsExactAsLibllamas) {
  const std::filesystem::path path = real_model();
  ASSERT_TRUE(std::filesystem::exists(path)) << path << " is missing: `make test` fetches it";
  const std::vector<Token> tokens = Vocabulary(path).tokenize(kText, true);
  const std::vector<float> f16 = our_logits(path, tokens);
  const std::vector<float> q8 = our_logits(path, tokens, CacheType::kQ8_0);
  const double error = relative_error(q8, f16);
  const double libllamas =
      relative_error(llama_logits(path, tokens, GGML_TYPE_Q8_0), llama_logits(path, tokens));
  const Score expected = score(f16, tokens), seen = score(q8, tokens);
  std::printf("perplexity %.4f, with F16 %.4f; error of the logits %.4f, libllama's %.4f\n",
              seen.perplexity, expected.perplexity, error, libllamas);
  EXPECT_LE(error, 1.25 * libllamas);
  EXPECT_NEAR(seen.perplexity / expected.perplexity, 1, 0.02);
}

}  // namespace
}  // namespace firp
