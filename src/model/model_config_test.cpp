#include "model/model_config.h"

#include <fmt/format.h>
#include <ggml-cpu.h>
#include <gguf.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "model/model.h"
#include "model/test_files.h"
#include "model/tiny_model.h"

namespace firp {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TinyModelOptions small_options(const std::string& architecture) {
  TinyModelOptions options;
  options.architecture = architecture;
  options.layers = 2;
  options.hidden_size = 32;
  options.query_heads = 4;
  options.kv_heads = 2;
  options.head_size = 16;
  options.feed_forward_size = 48;
  options.vocabulary_size = 20;
  return options;
}

ModelConfig config_of(const TinyModelOptions& options) {
  const TemporaryDirectory directory;
  write_tiny_model(directory / "m.gguf", options);
  return Model(directory / "m.gguf").config();
}

/// A tiny model's file with its metadata changed, and more tensors behind its own.
void rewrite(const std::filesystem::path& path, const TinyModelOptions& options,
             const std::function<void(gguf_context*)>& change,
             const std::vector<std::pair<std::string, std::vector<float>>>& more_tensors = {}) {
  write_tiny_model(path, options);
  ggml_context* tensors = nullptr;
  gguf_context* gguf = gguf_init_from_file(path.c_str(), {.no_alloc = false, .ctx = &tensors});
  change(gguf);
  gguf_context* changed = gguf_init_empty();
  gguf_set_kv(changed, gguf);
  for (std::int64_t i = 0; i < gguf_get_n_tensors(gguf); ++i) {
    gguf_add_tensor(changed, ggml_get_tensor(tensors, gguf_get_tensor_name(gguf, i)));
  }
  ggml_context* added =
      ggml_init({.mem_size = std::size_t{1} << 16, .mem_buffer = nullptr, .no_alloc = false});
  for (const auto& [name, values] : more_tensors) {
    ggml_tensor* tensor =
        ggml_new_tensor_1d(added, GGML_TYPE_F32, static_cast<std::int64_t>(values.size()));
    std::copy(values.begin(), values.end(), static_cast<float*>(tensor->data));
    ggml_set_name(tensor, name.c_str());
    gguf_add_tensor(changed, tensor);
  }
  gguf_write_to_file(changed, path.c_str(), false);
  gguf_free(changed);
  gguf_free(gguf);
  ggml_free(tensors);
  ggml_free(added);
}

TEST(ModelConfig, HasTheFilesValues) {
  TinyModelOptions options = small_options("qwen3");
  options.tied_head = true;
  const ModelConfig config = config_of(options);
  EXPECT_EQ(config.architecture, "qwen3");
  EXPECT_EQ(config.name, "tiny qwen3 1");
  EXPECT_EQ(config.layers, 2);
  EXPECT_EQ(config.hidden_size, 32);
  EXPECT_EQ(config.query_heads, 4);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.head_size, 16);
  EXPECT_EQ(config.query_size(), 64);
  EXPECT_EQ(config.kv_size(), 32);
  EXPECT_EQ(config.feed_forward_size, 48);
  EXPECT_EQ(config.vocabulary_size, 20);
  EXPECT_EQ(config.trained_context, 2048);
  EXPECT_EQ(config.rms_norm_epsilon, 1e-5f);
  EXPECT_EQ(config.ropes.at(0).dimensions, 16);
  EXPECT_TRUE(config.tied_head);
}

TEST(ModelConfig, ArchitecturesDifferByTheirFlags) {
  const auto flags = [](const ModelConfig& config) {
    return std::vector<bool>{config.ropes.at(0).interleaved, config.qkv_bias,
                             config.head_norms == HeadNorms::kEach, config.tied_head};
  };
  EXPECT_EQ(flags(config_of(small_options("llama"))), (std::vector{true, false, false, false}));
  EXPECT_EQ(flags(config_of(small_options("qwen2"))), (std::vector{false, true, false, false}));
  EXPECT_EQ(flags(config_of(small_options("qwen3"))), (std::vector{false, false, true, false}));
}

std::vector<int> windows_of(const ModelConfig& config) {
  std::vector<int> windows;
  for (const LayerConfig& layer : config.by_layer) windows.push_back(layer.window);
  return windows;
}
std::vector<int> ropes_of(const ModelConfig& config) {
  std::vector<int> ropes;
  for (const LayerConfig& layer : config.by_layer) ropes.push_back(layer.rope);
  return ropes;
}

TEST(ModelConfig, LayersDifferByWindowAndRotation) {
  TinyModelOptions options = small_options("gemma3");
  options.layers = 7;
  options.sliding_window = 24;
  options.rope_base = 1e6f;
  ModelConfig config = config_of(options);
  EXPECT_EQ(windows_of(config), (std::vector{24, 24, 24, 24, 24, 0, 24}));
  EXPECT_EQ(ropes_of(config), (std::vector{1, 1, 1, 1, 1, 0, 1}));
  EXPECT_FLOAT_EQ(config.ropes.at(0).frequencies.at(1), std::pow(1e6f, -0.125f));
  EXPECT_FLOAT_EQ(config.ropes.at(1).frequencies.at(1), std::pow(1e4f, -0.125f));
  EXPECT_EQ(config.activation, Activation::kGelu);
  EXPECT_TRUE(config.norms_after);
  EXPECT_FLOAT_EQ(config.embedding_scale, std::sqrt(32.0f));
  EXPECT_FLOAT_EQ(config.attention_scale, 0.25f);

  options.sliding_window = 0;
  EXPECT_EQ(windows_of(config_of(options)), std::vector<int>(7, 0));

  options = small_options("gemma2");
  options.layers = 4;
  options.sliding_window = 24;
  config = config_of(options);
  EXPECT_EQ(windows_of(config), (std::vector{24, 0, 24, 0}));
  EXPECT_EQ(ropes_of(config), (std::vector{0, 0, 0, 0}));
  EXPECT_EQ(config.attention_softcap, 2.0f);
  EXPECT_EQ(config.logit_softcap, 10.0f);

  options = small_options("smollm3");
  options.layers = 9;
  EXPECT_EQ(ropes_of(config_of(options)), (std::vector{0, 0, 0, -1, 0, 0, 0, -1, 0}));

  config = config_of(small_options("granite"));
  EXPECT_EQ(config.embedding_scale, 3.0f);
  EXPECT_EQ(config.residual_scale, 0.25f);
  EXPECT_FLOAT_EQ(config.logit_scale, 1 / 1.25f);
  EXPECT_EQ(config.attention_scale, 0.2f);

  // Of the largest of the family, scores are scaled by a head's share of the width: 32 / 4.
  options = small_options("gemma3");
  options.layers = 62;
  EXPECT_FLOAT_EQ(config_of(options).attention_scale, 1 / std::sqrt(8.0f));
}

TEST(ModelConfig, TheFileMaySayWhichLayersHaveAWindow) {
  const TemporaryDirectory directory;
  TinyModelOptions options = small_options("gemma3");
  options.layers = 4;
  options.sliding_window = 24;
  const auto with_pattern = [&](const std::function<void(gguf_context*)>& change) {
    rewrite(directory / "m.gguf", options, change);
    return windows_of(Model(directory / "m.gguf").config());
  };
  constexpr const char* kKey = "gemma3.attention.sliding_window_pattern";
  EXPECT_EQ(with_pattern([&](gguf_context* gguf) { gguf_set_val_u32(gguf, kKey, 2); }),
            (std::vector{24, 0, 24, 0}));
  constexpr std::int8_t kPattern[] = {1, 0, 0, 1};
  EXPECT_EQ(with_pattern([&](gguf_context* gguf) {
              gguf_set_arr_data(gguf, kKey, GGUF_TYPE_BOOL, kPattern, 4);
            }),
            (std::vector{24, 0, 0, 24}));
  EXPECT_THROW(with_pattern([&](gguf_context* gguf) {
                 gguf_set_arr_data(gguf, kKey, GGUF_TYPE_BOOL, kPattern, 3);
               }),
               Error);
}

TEST(Model, TakesPartsOfFusedTensors) {
  const TemporaryDirectory directory;
  const TinyModelOptions options = small_options("phi3");
  write_tiny_model(directory / "m.gguf", options);
  const Model model(directory / "m.gguf");
  const LayerTensors& layer = model.layers()[1];
  const Tensor& all = model.file().get_tensor("blk.1.attn_qkv.weight");
  EXPECT_EQ(layer.query->rows(), 64);
  EXPECT_EQ(layer.key->rows(), 32);
  EXPECT_EQ(layer.key->data.data(), all.data.data() + 64 * 32 * sizeof(float));
  EXPECT_EQ(layer.value->data.data(), all.data.data() + 96 * 32 * sizeof(float));
  EXPECT_EQ(layer.value->data.size(), 32 * 32 * sizeof(float));
  const Tensor& up = model.file().get_tensor("blk.1.ffn_up.weight");
  EXPECT_EQ(layer.gate->data.data(), up.data.data());
  EXPECT_EQ(layer.up->data.data(), up.data.data() + 48 * 32 * sizeof(float));
}

TEST(ModelConfig, DefaultsAreThoseOfLlamaCpp) {
  const TemporaryDirectory directory;
  TinyModelOptions options = small_options("llama");
  options.head_size = 8;  // d / heads
  options.kv_heads = 4;
  rewrite(directory / "m.gguf", options, [](gguf_context* gguf) {
    for (const char* key : {"llama.attention.head_count_kv", "llama.attention.key_length",
                            "llama.attention.value_length", "llama.rope.dimension_count",
                            "llama.rope.freq_base", "general.name"}) {
      ASSERT_GE(gguf_remove_key(gguf, key), 0);
    }
  });
  const ModelConfig config = Model(directory / "m.gguf").config();
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_size, 8);
  EXPECT_EQ(config.ropes.at(0).dimensions, 8);
  EXPECT_FLOAT_EQ(config.ropes.at(0).frequencies[1], std::pow(10000.0f, -0.25f));
  EXPECT_EQ(config.name, "m.gguf");
}

struct RopeCase {
  std::string scaling;
  float factor = 1;
  int original_context = 0;
  bool frequency_factors = false;
  float base = 10000;
};

/// Cosine and sine as ggml's own rotation gives them for the parameters that llama.cpp passes.
TEST(Rope, AgreesWithGgml) {
  for (const RopeCase& rope_case :
       {RopeCase{}, RopeCase{.base = 1e6f}, RopeCase{.scaling = "none", .factor = 4},
        RopeCase{.scaling = "linear", .factor = 4},
        RopeCase{.scaling = "yarn", .factor = 4, .original_context = 512},
        RopeCase{.scaling = "yarn", .factor = 40}, RopeCase{.scaling = "yarn", .factor = 1},
        RopeCase{.scaling = "yarn",
        .factor = 8,
        .original_context = 256,
        .frequency_factors = true,
        .base = 5e5f},
        RopeCase{.frequency_factors = true}}) {
    SCOPED_TRACE(
        fmt::format("{} {} {}", rope_case.scaling, rope_case.factor, rope_case.original_context));
    TinyModelOptions options = small_options("llama");
    options.head_size = 64;
    options.rope_base = rope_case.base;
    options.rope_scaling = rope_case.scaling;
    options.rope_scaling_factor = rope_case.factor;
    options.rope_original_context = rope_case.original_context;
    options.rope_frequency_factors = rope_case.frequency_factors;
    const RopeConfig rope = config_of(options).ropes.at(0);
    ASSERT_EQ(rope.frequencies.size(), 32u);

    const std::int32_t positions[] = {0, 1, 100, 1500, 8000};
    ggml_context* context =
        ggml_init({.mem_size = std::size_t{1} << 20, .mem_buffer = nullptr, .no_alloc = false});
    ggml_tensor* input = ggml_new_tensor_3d(context, GGML_TYPE_F32, 64, 1, 5);
    ggml_tensor* position = ggml_new_tensor_1d(context, GGML_TYPE_I32, 5);
    std::copy(std::begin(positions), std::end(positions),
              static_cast<std::int32_t*>(position->data));
    for (int i = 0; i < 64 * 5; ++i) {  // every pair is (1, 0): its rotation is (cos, sin)
      static_cast<float*>(input->data)[i] = i % 2 == 0 ? 1.0f : 0.0f;
    }
    ggml_tensor* factors = nullptr;
    if (rope_case.frequency_factors) {
      factors = ggml_new_tensor_1d(context, GGML_TYPE_F32, 32);
      for (int pair = 0; pair < 32; ++pair) {  // what write_tiny_model wrote
        static_cast<float*>(factors->data)[pair] =
            std::exp2(3.0f * static_cast<float>(pair) / 31.0f);
      }
    }
    const bool yarn = rope_case.scaling == "yarn";
    ggml_tensor* rotated =
        ggml_rope_ext(context, input, position, factors, 64, GGML_ROPE_TYPE_NORMAL,
                      rope_case.original_context > 0 ? rope_case.original_context : 2048,
                      rope_case.base, rope_case.scaling == "none" ? 1.0f : 1.0f / rope_case.factor,
                      yarn ? 1.0f : 0.0f, 1.0f, 32.0f, 1.0f);
    ggml_cgraph* graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, rotated);
    ASSERT_EQ(ggml_graph_compute_with_ctx(context, graph, 1), GGML_STATUS_SUCCESS);
    const float* expected = static_cast<const float*>(rotated->data);
    for (int i = 0; i < 5; ++i) {
      // An angle of 8000 rounded to F32 is off by up to 2.5e-4, once on either side.
      const double bound = 2e-6 + 1.5e-7 * positions[i];
      for (std::size_t pair = 0; pair < 32; ++pair) {
        const double angle = static_cast<float>(positions[i]) * rope.frequencies[pair];
        EXPECT_NEAR(std::cos(angle) * rope.magnitude, expected[64 * i + 2 * pair], bound) << pair;
        EXPECT_NEAR(std::sin(angle) * rope.magnitude, expected[64 * i + 2 * pair + 1], bound);
      }
    }
    ggml_free(context);
  }
}

TEST(Rope, YarnTellsItsPairsApart) {
  TinyModelOptions options = small_options("qwen2");
  options.head_size = 64;
  const RopeConfig plain = config_of(options).ropes.at(0);
  options.rope_scaling = "yarn";
  options.rope_scaling_factor = 4;
  options.rope_original_context = 512;
  const RopeConfig yarn = config_of(options).ropes.at(0);
  EXPECT_EQ(yarn.frequencies.front(), plain.frequencies.front());
  EXPECT_FLOAT_EQ(yarn.frequencies.back(), plain.frequencies.back() / 4);
  EXPECT_FLOAT_EQ(yarn.magnitude, 1.0f + 0.1f * std::log(4.0f));
}

TEST(ModelConfig, LongRopeTakesTheFactorsOfTheContextInUse) {
  const TemporaryDirectory directory;
  for (const std::uint32_t original : {512u, 4096u}) {
    rewrite(directory / "m.gguf", small_options("llama"),
            [&](gguf_context* gguf) {
              gguf_set_val_str(gguf, "llama.rope.scaling.type", "longrope");
              gguf_set_val_u32(gguf, "llama.rope.scaling.original_context_length", original);
              gguf_set_val_f32(gguf, "llama.rope.scaling.attn_factor", 1.25f);
            },
            {{"rope_factors_long.weight", std::vector(8, 2.0f)},
             {"rope_factors_short.weight", std::vector(8, 1.0f)}});
    const RopeConfig rope = Model(directory / "m.gguf").config().ropes.at(0);
    const int context = static_cast<int>(original);
    EXPECT_EQ(rope.frequencies_for(1)[0], 1.0f);
    EXPECT_EQ(rope.frequencies_for(context)[0], 1.0f);
    EXPECT_EQ(rope.frequencies_for(context + 1)[0], 0.5f);
    EXPECT_EQ(rope.frequencies_for(1 << 30)[0], 0.5f);
    EXPECT_EQ(rope.magnitude, 1.25f);
  }
}

TEST(ModelConfig, RefusesTensorsThatItWouldLeaveOut) {
  const TemporaryDirectory directory;
  const auto message = [&](const std::string& architecture, const std::string& name,
                           const std::vector<float>& values) {
    rewrite(directory / "m.gguf", small_options(architecture), [](gguf_context*) {},
            {{name, values}});
    return error_of([&] { Model model(directory / "m.gguf"); });
  };
  EXPECT_THAT(message("llama", "blk.0.ffn_gate.bias", std::vector(48, 1.0f)),
              HasSubstr("blk.0.ffn_gate.bias"));
  EXPECT_THAT(message("llama", "blk.0.attn_q.bias", std::vector(64, 1.0f)),
              HasSubstr("blk.0.attn_k.bias is missing"));
  EXPECT_THAT(message("qwen2", "rope_freqs.weight", std::vector(8, 2.0f)),
              HasSubstr("rope_freqs.weight"));
  EXPECT_THAT(message("llama", "rope_freqs.weight", std::vector(7, 2.0f)), HasSubstr("expected 8"));
  EXPECT_THAT(message("llama", "rope_freqs.weight", std::vector(8, 0.0f)),
              HasSubstr("rope_freqs.weight"));
}

TEST(ModelConfig, AMixturesExpertsStandOneAfterTheOther) {
  const TemporaryDirectory directory;
  TinyModelOptions options = small_options("qwen3moe");
  options.feed_forward_size = 64;
  options.experts = 5;
  rewrite(directory / "m.gguf", options, [](gguf_context* gguf) {
    gguf_set_val_u32(gguf, "qwen3moe.feed_forward_length", 6144);  // of no layer, as in real files
  });
  const Model model(directory / "m.gguf");
  EXPECT_EQ(model.config().experts, 5);
  EXPECT_EQ(model.config().experts_used, 3);
  EXPECT_EQ(model.config().feed_forward_size, 64);
  EXPECT_EQ(model.config().expert_weights, ExpertWeights::kOfUsed);
  EXPECT_EQ(config_of({.architecture = "olmoe"}).expert_weights, ExpertWeights::kOfAll);
  const LayerTensors& layer = model.layers()[1];
  EXPECT_EQ(layer.router->rows(), 5);
  EXPECT_EQ(layer.gate->rows(), 5 * 64);
  EXPECT_EQ(layer.down->rows(), 5 * 32);
  EXPECT_EQ(layer.down->columns(), 64);
  EXPECT_EQ(layer.down->data.data(),
            model.file().get_tensor("blk.1.ffn_down_exps.weight").data.data());
}

TEST(ModelConfig, RefusesMixturesThatItCannotRun) {
  const TemporaryDirectory directory;
  const auto message = [&](const TinyModelOptions& options, const char* key, std::uint32_t value) {
    rewrite(directory / "m.gguf", options,
            [&](gguf_context* gguf) { gguf_set_val_u32(gguf, key, value); });
    try {
      Model model(directory / "m.gguf");
    } catch (const Error& error) {
      return std::string(dynamic_cast<const Unsupported*>(&error) != nullptr ? "unsupported: "
                                                                             : "damaged: ") +
             error.what();
    }
    return std::string("taken");
  };
  EXPECT_THAT(message(small_options("qwen2"), "qwen2.expert_count", 8),
              AllOf(HasSubstr("unsupported"), HasSubstr("mixtures")));
  EXPECT_THAT(message(small_options("olmoe"), "olmoe.context_length", 512),  // of width 48
              AllOf(HasSubstr("unsupported"), HasSubstr("multiples of 32")));
  TinyModelOptions options = small_options("olmoe");
  options.feed_forward_size = 64;
  EXPECT_EQ(message(options, "olmoe.context_length", 512), "taken");
  EXPECT_THAT(message(options, "olmoe.expert_used_count", 9),
              AllOf(HasSubstr("damaged"), HasSubstr("expert_used_count")));
  EXPECT_THAT(message(options, "olmoe.expert_count", 9),
              AllOf(HasSubstr("damaged"), HasSubstr("ffn_gate_inp")));
}

/// What llama.cpp may run must be Unsupported: an Error would end `--engine auto`.
TEST(ModelConfig, ValuesForEachLayerAreUnsupportedNotDamage) {
  const TemporaryDirectory directory;
  for (const char* const key :
       {"llama.feed_forward_length", "llama.attention.head_count", "llama.attention.head_count_kv",
        "llama.attention.key_length", "llama.attention.value_length", "llama.rope.dimension_count",
        "llama.attention.sliding_window", "llama.expert_count"}) {
    rewrite(directory / "m.gguf", small_options("llama"), [&](gguf_context* gguf) {
      const std::int32_t values[] = {4, 2};
      gguf_set_arr_data(gguf, key, GGUF_TYPE_INT32, values, 2);
    });
    try {
      Model model(directory / "m.gguf");
      ADD_FAILURE() << key;
    } catch (const Unsupported& error) {
      EXPECT_THAT(error.what(), HasSubstr(key));
    }
  }
  rewrite(directory / "m.gguf", small_options("llama"), [&](gguf_context* gguf) {
    gguf_set_val_u32(gguf, "llama.rope.dimension_count", 18);  // more than a head has
  });
  EXPECT_THROW(Model(directory / "m.gguf"), Unsupported);
}

TEST(ModelConfig, RefusesByName) {
  const TemporaryDirectory directory;
  const auto message = [&](const std::function<void(gguf_context*)>& change) {
    rewrite(directory / "m.gguf", small_options("llama"), change);
    return error_of([&] { Model model(directory / "m.gguf"); });
  };
  const auto with_int = [&](const char* key, std::uint32_t value) {
    return message([&](gguf_context* gguf) { gguf_set_val_u32(gguf, key, value); });
  };
  const auto with_float = [&](const char* key, float value) {
    return message([&](gguf_context* gguf) { gguf_set_val_f32(gguf, key, value); });
  };
  const auto with_string = [&](const char* key, const char* value) {
    return message([&](gguf_context* gguf) { gguf_set_val_str(gguf, key, value); });
  };
  EXPECT_THAT(with_string("general.architecture", "mamba"), HasSubstr("llama, qwen2, qwen3"));
  EXPECT_THAT(with_int("llama.block_count", 0), HasSubstr("llama.block_count"));
  EXPECT_THAT(with_int("llama.block_count", 4000000000u), HasSubstr("llama.block_count"));
  EXPECT_THAT(with_int("llama.block_count", 3), HasSubstr("blk.2.attn_q.weight is missing"));
  EXPECT_THAT(with_int("llama.block_count", 1), HasSubstr("blk.1."));
  EXPECT_THAT(with_int("llama.embedding_length", 64), HasSubstr("token_embd.weight"));
  EXPECT_THAT(with_int("llama.feed_forward_length", 4096), HasSubstr("ffn_gate"));
  EXPECT_THAT(with_int("llama.attention.head_count", 3), HasSubstr("share"));
  EXPECT_THAT(with_int("llama.attention.value_length", 8), HasSubstr("value_length differs"));
  EXPECT_THAT(with_int("llama.rope.dimension_count", 18), HasSubstr("rope.dimension_count"));
  EXPECT_THAT(with_int("llama.rope.dimension_count", 7), HasSubstr("rope.dimension_count"));
  EXPECT_THAT(with_int("llama.attention.sliding_window", 1024), HasSubstr("sliding-window"));
  EXPECT_THAT(with_int("llama.expert_count", 8), HasSubstr("expert_used_count"));
  EXPECT_THAT(with_int("split.count", 2), HasSubstr("split"));
  EXPECT_THAT(with_float("llama.attn_logit_softcapping", 50), HasSubstr("softcapping"));
  EXPECT_THAT(with_float("llama.rope.freq_base", NAN), HasSubstr("freq_base"));
  EXPECT_THAT(with_float("llama.rope.freq_base", 1), HasSubstr("freq_base"));
  EXPECT_THAT(with_float("llama.rope.scaling.factor", -1), HasSubstr("scaling.factor"));
  EXPECT_THAT(with_float("llama.rope.scaling.factor", 1e-40f), HasSubstr("scaling.factor"));
  EXPECT_THAT(with_float("llama.attention.layer_norm_rms_epsilon", INFINITY), HasSubstr("epsilon"));
  EXPECT_THAT(with_string("llama.rope.scaling.type", "dynamic"), HasSubstr("dynamic"));
  EXPECT_THAT(message([](gguf_context* gguf) {
                const std::int32_t heads[] = {4, 2};
                gguf_set_arr_data(gguf, "llama.attention.head_count", GGUF_TYPE_INT32, heads, 2);
              }),
              HasSubstr("llama.attention.head_count has a value for each layer"));
  EXPECT_THAT(
      message([](gguf_context* gguf) { gguf_set_val_bool(gguf, "llama.attention.causal", false); }),
      HasSubstr("causal"));
  EXPECT_THAT(message([](gguf_context* gguf) {
                const char* tokens[] = {"a", "b"};
                gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", tokens, 2);
              }),
              HasSubstr("20 rows"));
}

TEST(ModelConfig, AWindowThatNeverClosesDoesNotMatter) {
  const TemporaryDirectory directory;
  rewrite(directory / "m.gguf", small_options("llama"), [](gguf_context* gguf) {
    gguf_set_val_u32(gguf, "llama.attention.sliding_window", 4096);
  });
  EXPECT_NO_THROW(Model(directory / "m.gguf"));
}

TEST(Model, RefusesTypesThatCannotBePacked) {
  const TemporaryDirectory directory;
  TinyModelOptions options;
  options.layers = 2;
  options.type = GGML_TYPE_IQ3_S;
  write_tiny_model(directory / "m.gguf", options);
  EXPECT_THAT(error_of([&] { Model model(directory / "m.gguf"); }),
              testing::AllOf(HasSubstr("iq3_s"), HasSubstr("q4_K")));
}

TEST(Model, FindsItsTensors) {
  const TemporaryDirectory directory;
  write_tiny_model(directory / "m.gguf", small_options("qwen2"));
  Model first(directory / "m.gguf");
  const Model model = std::move(first);  // the pointers stay good
  ASSERT_EQ(model.layers().size(), 2u);
  EXPECT_EQ(model.token_embedding().name, "token_embd.weight");
  EXPECT_EQ(model.head().name, "output.weight");
  EXPECT_EQ(model.layers()[1].down->name, "blk.1.ffn_down.weight");
  EXPECT_EQ(model.layers()[1].down->columns(), 48);
  EXPECT_EQ(model.layers()[1].down->rows(), 32);
  EXPECT_EQ(model.layers()[0].query_bias->elements(), 64);
  EXPECT_EQ(model.layers()[0].query_norm, nullptr);
}

TEST(ModelIdentity, ChangesWithAnyByteOfATensor) {
  const TemporaryDirectory directory;
  write_tiny_model(directory / "m.gguf", small_options("llama"));
  const Model model(directory / "m.gguf");
  const ModelIdentity identity = model.identity();
  EXPECT_EQ(identity, model.identity());
  EXPECT_EQ(identity.architecture, "llama");
  EXPECT_EQ(identity.tensor_hash.size(), 16u);

  const std::string bytes = read_bytes(directory / "m.gguf");
  const std::size_t begin = bytes.size() - model.head().data.size();
  std::vector<std::string> hashes = {identity.tensor_hash};
  const Tensor& last = model.file().tensors().back();
  const std::size_t last_begin =
      bytes.rfind(std::string(reinterpret_cast<const char*>(last.data.data()), last.data.size()));
  for (const std::size_t offset :
       {begin, begin + 1, begin + 700, last_begin, last_begin + last.data.size() - 1}) {
    std::string changed = bytes;
    changed[offset] = static_cast<char>(changed[offset] ^ 1);
    write_bytes(directory / "c.gguf", changed);
    hashes.push_back(Model(directory / "c.gguf").identity().tensor_hash);
  }
  std::sort(hashes.begin(), hashes.end());
  EXPECT_EQ(std::unique(hashes.begin(), hashes.end()), hashes.end());
}

TEST(ModelInMemory, IsCheckedAsAFileIs) {
  const TemporaryDirectory directory;
  write_tiny_model(directory / "m.gguf", small_options("qwen3"));
  const Model file(directory / "m.gguf");
  const ModelTensors tensors = {&file.token_embedding(), &file.output_norm(), &file.head(),
                                file.layers()};
  const Model memory(file.config(), tensors);
  EXPECT_TRUE(file.has_file());
  EXPECT_FALSE(memory.has_file());
  EXPECT_EQ(&memory.head(), &file.head());
  EXPECT_EQ(memory.identity().hidden_size, file.config().hidden_size);
  EXPECT_EQ(memory.identity().tensor_hash, "");

  ModelTensors broken = tensors;
  broken.layers.back().key_norm = nullptr;
  EXPECT_NE(error_of([&] { Model(file.config(), broken); }).find("missing"), std::string::npos);
  broken = tensors;
  broken.layers.back().key = broken.layers.back().query;
  EXPECT_NE(error_of([&] { Model(file.config(), broken); }).find("shape"), std::string::npos);
  broken = tensors;
  broken.layers.pop_back();
  EXPECT_NE(error_of([&] { Model(file.config(), broken); }).find("layers"), std::string::npos);
  Tensor other_type = file.head();
  other_type.type = GGML_TYPE_IQ3_S;
  broken = tensors;
  broken.head = &other_type;
  EXPECT_NE(error_of([&] { Model(file.config(), broken); }).find("iq3_s"), std::string::npos);
}

/// Another value would orphan every heads file there is.
TEST(ModelIdentity, HashStaysTheSameFromVersionToVersion) {
  const TemporaryDirectory directory;
  write_tiny_model(directory / "m.gguf", small_options("llama"));
  const Model model(directory / "m.gguf");
  std::string bytes = read_bytes(directory / "m.gguf");
  std::size_t data_bytes = 0;
  for (const Tensor& tensor : model.file().tensors()) {
    data_bytes += GGML_PAD(tensor.data.size(), GGUF_DEFAULT_ALIGNMENT);
  }
  for (std::size_t i = bytes.size() - data_bytes; i < bytes.size(); ++i) {
    bytes[i] = static_cast<char>(i * i / 7);
  }
  write_bytes(directory / "m.gguf", bytes);
  EXPECT_EQ(Model(directory / "m.gguf").identity().tensor_hash, "efd2d4b7e92ad4a8");
}

}  // namespace
}  // namespace firp
