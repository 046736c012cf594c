#include "model/tiny_model.h"

#include <ggml-backend.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama.h>

#include <cmath>

#include "model/ggml_log.h"
#include "model/model.h"
#include "model/tensor_types.h"
#include "model/test_files.h"

namespace firp {
namespace {

struct Case {
  std::string name;
  TinyModelOptions options;
  bool ours = true;  ///< else it is for libllama alone
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const std::string architecture :
       {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "smollm3", "granite",
        "qwen3moe", "olmoe", "granitemoe"}) {
    TinyModelOptions options;
    options.architecture = architecture;
    // libllama wants OLMoE to have a KV head for each query head.
    if (architecture == "olmoe") options.kv_heads = options.query_heads;
    for (const bool tied : {false, true}) {
      // It asks for a head of its own.
      if (tied && architecture.starts_with("olmo")) continue;
      options.tied_head = tied;
      all.push_back({architecture + (tied ? "_tied" : ""), options});
    }
    options.tied_head = false;
    options.rope_scaling = "linear";
    options.rope_scaling_factor = 2;
    all.push_back({architecture + "_linear", options});
    options.rope_scaling = "yarn";
    options.rope_scaling_factor = 4;
    options.rope_original_context = 512;
    all.push_back({architecture + "_yarn", options});
  }
  TinyModelOptions options;
  options.rope_frequency_factors = true;
  all.push_back({"llama_rope_freqs", options});
  for (const ggml_type type : kMatrixTypes) {
    TinyModelOptions quantised;
    quantised.type = type;
    all.push_back({ggml_type_name(type), quantised});
  }
  for (const std::string architecture : {"gptneox", "falcon", "starcoder2"}) {
    all.push_back({architecture, {.architecture = architecture}, /*ours=*/false});
  }
  return all;
}

class TinyModel : public testing::TestWithParam<Case> {};

TEST_P(TinyModel, IsAcceptedByUsAndEvaluatedByLibllama) {
  const TemporaryDirectory directory;
  const std::filesystem::path path = directory / "m.gguf";
  const TinyModelOptions& options = GetParam().options;
  write_tiny_model(path, options);
  if (GetParam().ours) {
    const Model model(path);
    EXPECT_EQ(model.config().layers, options.layers);
    EXPECT_EQ(model.config().tied_head,
              options.tied_head || options.architecture.starts_with("gemma"));
  }

  const GgmlErrors errors;
  ggml_backend_load_all();
  llama_model_params model_parameters = llama_model_default_params();
  model_parameters.n_gpu_layers = 0;
  llama_model* reference = llama_model_load_from_file(path.c_str(), model_parameters);
  ASSERT_NE(reference, nullptr) << errors.text("");
  llama_context_params context_parameters = llama_context_default_params();
  context_parameters.n_ctx = 64;
  context_parameters.n_threads = 1;
  context_parameters.n_threads_batch = 1;
  llama_context* context = llama_init_from_model(reference, context_parameters);
  ASSERT_NE(context, nullptr) << errors.text("");
  std::vector<llama_token> tokens = {1, 17, 300, 5, 5, 99};
  ASSERT_EQ(llama_decode(context, llama_batch_get_one(tokens.data(), 6)), 0) << errors.text("");
  const float* logits = llama_get_logits_ith(context, -1);
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < options.vocabulary_size; ++i) {
    ASSERT_TRUE(std::isfinite(logits[i]));
    sum += logits[i];
    squares += double{logits[i]} * logits[i];
  }
  const double mean = sum / options.vocabulary_size;
  const double spread = std::sqrt(squares / options.vocabulary_size - mean * mean);
  EXPECT_GT(spread, 1.5);
  EXPECT_LT(spread, 5.0);
  llama_free(context);
  llama_model_free(reference);
}

INSTANTIATE_TEST_SUITE_P(All, TinyModel, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

TEST(TinyModelOptions, AreTheSameBytesForTheSameSeed) {
  const TemporaryDirectory directory;
  TinyModelOptions options;
  write_tiny_model(directory / "a.gguf", options);
  write_tiny_model(directory / "b.gguf", options);
  options.seed = 2;
  write_tiny_model(directory / "c.gguf", options);
  EXPECT_EQ(read_bytes(directory / "a.gguf"), read_bytes(directory / "b.gguf"));
  EXPECT_NE(read_bytes(directory / "a.gguf"), read_bytes(directory / "c.gguf"));
}

}  // namespace
}  // namespace firp
