#include "model/tiny_model.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>
#include <utility>

#include "base/error.h"
#include "model/gguf_pointers.h"
#include "model/model.h"

namespace firp {
namespace {

/// SplitMix64: the same numbers on every machine and standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  /// Nearly normal: the sum of four uniform numbers. No library function, so no last bit differs.
  float normal(double mean, double deviation) {
    const double sum = uniform() + uniform() + uniform() + uniform() - 2.0;
    return static_cast<float>(mean + deviation * std::numbers::sqrt3 * sum);
  }

 private:
  double uniform() {  // in [0, 1)
    state_ += 0x9e3779b97f4a7c15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-53;
  }

  std::uint64_t state_;
};

/// What an architecture has beyond, or instead of, what llama has. llama.cpp's src/models/ tell.
struct Parts {
  bool qkv_bias = false;
  HeadNorms head_norms = HeadNorms::kNone;
  bool norms_before = true;       ///< of attention and feed-forward
  bool norms_after = false;       ///< of what they add
  bool feed_forward_norm = true;  ///< else the feed-forward runs beside attention
  bool layer_norm = false;        ///< with biases, instead of RMS norms
  bool fused_qkv = false;         ///< one matrix
  bool fused_gate_up = false;     ///< one matrix
  bool gate = true;
  bool output_bias = false;  ///< of attention's output and the feed-forward
  bool tied_head = false;    ///< always
  int sliding_window = 0;
  bool mixture = false;
};

Parts parts_of(const TinyModelOptions& options) {
  const std::string& architecture = options.architecture;
  constexpr auto kEach = HeadNorms::kEach, kAll = HeadNorms::kAll;
  if (architecture == "llama" || architecture == "smollm3" || architecture == "granite") return {};
  if (architecture == "qwen2") return {.qkv_bias = true};
  if (architecture == "qwen3") return {.head_norms = kEach};
  if (architecture == "qwen3moe") return {.head_norms = kEach, .mixture = true};
  if (architecture == "olmoe") return {.head_norms = kAll, .mixture = true};
  if (architecture == "granitemoe") return {.mixture = true};
  if (architecture == "gemma2") {
    return {.norms_after = true, .tied_head = true, .sliding_window = options.sliding_window};
  }
  if (architecture == "gemma3") {
    return {.head_norms = kEach,
            .norms_after = true,
            .tied_head = true,
            .sliding_window = options.sliding_window};
  }
  if (architecture == "phi3") return {.fused_qkv = true, .fused_gate_up = true};
  if (architecture == "gptneox") {
    return {.qkv_bias = true,
            .layer_norm = true,
            .fused_qkv = true,
            .gate = false,
            .output_bias = true};
  }
  if (architecture == "falcon") {
    return {.feed_forward_norm = false, .layer_norm = true, .fused_qkv = true, .gate = false};
  }
  if (architecture == "starcoder2") {
    return {.qkv_bias = true, .layer_norm = true, .gate = false, .output_bias = true};
  }
  if (architecture == "olmo2") {
    return {.head_norms = kAll,
            .norms_before = false,
            .norms_after = true,
            .sliding_window = options.sliding_window};
  }
  throw Error(fmt::format("tiny model: there is no {}", architecture));
}

class Writer {
 public:
  explicit Writer(const TinyModelOptions& options)
      : options_(options),
        random_(options.seed),
        gguf_(gguf_init_empty()),
        ggml_(ggml_init({.mem_size = kMostTensors * ggml_tensor_overhead(),
                         .mem_buffer = nullptr,
                         .no_alloc = true})) {}

  void set_string(const std::string& key, const std::string& value) {
    gguf_set_val_str(gguf_.get(), key.c_str(), value.c_str());
  }
  void set_int(std::string_view name, int value) {
    gguf_set_val_u32(gguf_.get(), key(name).c_str(), static_cast<std::uint32_t>(value));
  }
  void set_bool(std::string_view name, bool value) {
    gguf_set_val_bool(gguf_.get(), key(name).c_str(), value);
  }
  void set_float(std::string_view name, float value) {
    gguf_set_val_f32(gguf_.get(), key(name).c_str(), value);
  }
  std::string key(std::string_view name) const {
    return fmt::format("{}.{}", options_.architecture, name);
  }

  /// A matrix of the model's type, with normal weights.
  void add_matrix(const std::string& name, int columns, int rows, double deviation) {
    add_matrices(name, options_.type, columns, rows, /*experts=*/1, deviation);
  }
  /// One for each expert, `rows` in all.
  void add_matrices(const std::string& name, ggml_type type, int columns, int rows, int experts,
                    double deviation) {
    std::vector<float> values(static_cast<std::size_t>(columns) * static_cast<std::size_t>(rows));
    for (float& value : values) {
      value = random_.normal(0.0, deviation);
    }
    add(name, type, columns, rows, values, experts);
  }

  void add_vector(const std::string& name, int size, double mean, double deviation) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) {
      value = random_.normal(mean, deviation);
    }
    add(name, GGML_TYPE_F32, size, 1, values);
  }

  void add(const std::string& name, ggml_type type, int columns, int rows,
           const std::vector<float>& values, int experts = 1) {
    if (columns % ggml_blck_size(type) != 0) {
      throw Error(fmt::format("tiny model: {} has {} columns, not a multiple of {}'s block of {}",
                              name, columns, ggml_type_name(type), ggml_blck_size(type)));
    }
    ggml_tensor* tensor =
        rows == 1 ? ggml_new_tensor_1d(ggml_.get(), type, columns)
                  : ggml_new_tensor_3d(ggml_.get(), type, columns, rows / experts, experts);
    ggml_set_name(tensor, name.c_str());
    std::vector<std::byte>& data = data_.emplace_back(ggml_nbytes(tensor));
    ggml_quantize_chunk(type, values.data(), data.data(), 0, rows, columns, nullptr);
    tensor->data = data.data();
    gguf_add_tensor(gguf_.get(), tensor);
  }

  void write(const std::filesystem::path& path) const {
    if (!gguf_write_to_file(gguf_.get(), path.c_str(), /*only_meta=*/false)) {
      throw Error(fmt::format("{}: cannot write the tiny model", path.string()));
    }
  }

 private:
  static constexpr std::size_t kMostTensors = 1 << 14;
  const TinyModelOptions& options_;
  Random random_;
  GgufPointer gguf_;
  GgmlPointer ggml_;
  std::vector<std::vector<std::byte>> data_;
};

}  // namespace

void write_tiny_model(const std::filesystem::path& path, const TinyModelOptions& options) {
  const TinyModelOptions& o = options;
  Writer writer(o);
  writer.set_string("general.architecture", o.architecture);
  writer.set_string("general.name", fmt::format("tiny {} {}", o.architecture, o.seed));
  writer.set_string("tokenizer.ggml.model", "no_vocab");
  writer.set_int("vocab_size", o.vocabulary_size);
  writer.set_int("block_count", o.layers);
  writer.set_int("context_length", 2048);
  writer.set_int("embedding_length", o.hidden_size);
  writer.set_int("feed_forward_length", o.feed_forward_size);
  writer.set_int("attention.head_count", o.query_heads);
  writer.set_int("attention.head_count_kv", o.kv_heads);
  writer.set_int("attention.key_length", o.head_size);
  writer.set_int("attention.value_length", o.head_size);
  writer.set_int("rope.dimension_count", o.rope_dimensions > 0 ? o.rope_dimensions : o.head_size);
  writer.set_float("rope.freq_base", o.rope_base);
  const Parts parts = parts_of(o);
  const int experts = o.experts == 0 && parts.mixture ? 8 : o.experts;
  if (experts > 0) {
    writer.set_int("expert_count", experts);
    writer.set_int("expert_used_count", 3);
    if (o.architecture == "qwen3moe") {
      writer.set_int("expert_feed_forward_length", o.feed_forward_size);
    }
  }
  writer.set_float(
      parts.layer_norm ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
      1e-5f);
  if (parts.sliding_window > 0) writer.set_int("attention.sliding_window", parts.sliding_window);
  if (o.architecture == "gptneox") writer.set_bool("use_parallel_residual", true);
  if (o.architecture == "gemma2") {  // lower than real models', so that they matter
    writer.set_float("attn_logit_softcapping", 2.0f);
    writer.set_float("final_logit_softcapping", 10.0f);
  }
  if (o.architecture.starts_with("granite")) {
    writer.set_float("embedding_scale", 3.0f);
    writer.set_float("residual_scale", 0.25f);
    writer.set_float("attention.scale", 0.2f);
    writer.set_float("logit_scale", 1.25f);
  }
  if (!o.rope_scaling.empty()) {
    writer.set_string(writer.key("rope.scaling.type"), o.rope_scaling);
    writer.set_float("rope.scaling.factor", o.rope_scaling_factor);
  }
  if (o.rope_original_context > 0) {
    writer.set_int("rope.scaling.original_context_length", o.rope_original_context);
  }

  // Deviations of 1 / sqrt(inputs) keep activations near 1, and so those of the final norm's
  // output.
  const auto unit = [](int inputs) { return 1.0 / std::sqrt(static_cast<double>(inputs)); };
  const bool tied_head = o.tied_head || parts.tied_head;
  writer.add_matrix("token_embd.weight", o.hidden_size, o.vocabulary_size,
                    tied_head ? o.logit_spread * unit(o.hidden_size) : 1.0);
  writer.add_vector("output_norm.weight", o.hidden_size, 1.0, 0.1);
  if (parts.layer_norm) writer.add_vector("output_norm.bias", o.hidden_size, 0.0, 0.1);
  if (!tied_head) {
    writer.add_matrix("output.weight", o.hidden_size, o.vocabulary_size,
                      o.logit_spread * unit(o.hidden_size));
  }
  const auto add_rope_factors = [&](const std::string& name, float octaves) {
    if (o.architecture != "llama" && o.architecture != "phi3") {
      throw Error(fmt::format("tiny model: {} has no {}", o.architecture, name));
    }
    const int pairs = (o.rope_dimensions > 0 ? o.rope_dimensions : o.head_size) / 2;
    std::vector<float> factors(pairs);
    for (std::size_t pair = 0; pair < factors.size(); ++pair) {
      factors[pair] = std::exp2(octaves * static_cast<float>(pair) /
                                static_cast<float>(std::max<std::size_t>(factors.size() - 1, 1)));
    }
    writer.add(name, GGML_TYPE_F32, pairs, 1, factors);
  };
  if (o.rope_frequency_factors) add_rope_factors("rope_freqs.weight", 3);  // 1 to 8, as Llama 3.1's
  if (o.rope_scaling == "longrope") {
    add_rope_factors("rope_factors_short.weight", 1);
    add_rope_factors("rope_factors_long.weight", 5);
  }
  ModelConfig config;
  config.hidden_size = o.hidden_size;
  config.query_heads = o.query_heads;
  config.kv_heads = o.kv_heads;
  config.head_size = o.head_size;
  config.feed_forward_size = o.feed_forward_size;
  config.experts = experts;
  config.qkv_bias = parts.qkv_bias;
  config.head_norms = parts.head_norms;
  config.norms_before = parts.norms_before;
  config.norms_after = parts.norms_after;
  config.fused_qkv = parts.fused_qkv;
  config.fused_gate_up = parts.fused_gate_up;
  const LayerParts<PartSpec, PartSpec> specs = layer_specs(config);
  const auto is_left_out = [&](const PartSpec& spec) {
    return spec.outputs == 0 || spec.first_output > 0 ||
           (!parts.gate && spec.name == "ffn_gate.weight") ||
           (!parts.feed_forward_norm && spec.name == "ffn_norm.weight");
  };
  for (int layer = 0; layer < o.layers; ++layer) {
    const auto name = [layer](std::string_view part) {
      return fmt::format("blk.{}.{}", layer, part);
    };
    for (const PartSpec* const spec : specs.matrices()) {
      if (is_left_out(*spec)) continue;
      const bool scores = spec->name == "attn_q.weight" || spec->name == "attn_k.weight";
      const bool is_router = spec == &specs.router;
      const double spread = scores                            ? 1.5
                            : is_router                       ? 2.0
                            : spec->name == "attn_qkv.weight" ? 1.2
                                                              : 1.0;
      writer.add_matrices(name(spec->name), is_router ? GGML_TYPE_F32 : o.type, spec->inputs,
                          spec->file_outputs, spec->experts, spread * unit(spec->inputs));
    }
    for (const PartSpec* const spec : specs.vectors()) {
      if (is_left_out(*spec)) continue;
      const bool is_norm = spec->name.ends_with("norm.weight");
      writer.add_vector(name(spec->name), spec->file_outputs, is_norm ? 1.0 : 0.0,
                        is_norm ? 0.1 : 0.5);
      if (!is_norm || !parts.layer_norm) continue;
      const std::string_view stem = spec->name.substr(0, spec->name.find('.'));
      writer.add_vector(name(fmt::format("{}.bias", stem)), spec->file_outputs, 0.0, 0.1);
    }
    if (!parts.output_bias) continue;
    writer.add_vector(name("attn_output.bias"), o.hidden_size, 0.0, 0.5);
    writer.add_vector(name("ffn_up.bias"), o.feed_forward_size, 0.0, 0.5);
    writer.add_vector(name("ffn_down.bias"), o.hidden_size, 0.0, 0.5);
  }
  writer.write(path);
}

void write_tiny_mamba(const std::filesystem::path& path) {
  const TinyModelOptions options = {.architecture = "mamba"};
  constexpr int kInner = 512, kConvolution = 4, kState = 16, kStepRank = 16;
  const int d = options.hidden_size;
  Writer writer(options);
  writer.set_string("general.architecture", options.architecture);
  writer.set_string("tokenizer.ggml.model", "no_vocab");
  writer.set_int("vocab_size", options.vocabulary_size);
  writer.set_int("block_count", 1);
  writer.set_int("context_length", 2048);
  writer.set_int("embedding_length", d);
  writer.set_int("feed_forward_length", 0);
  writer.set_int("attention.head_count", 0);
  writer.set_int("ssm.conv_kernel", kConvolution);
  writer.set_int("ssm.inner_size", kInner);
  writer.set_int("ssm.state_size", kState);
  writer.set_int("ssm.time_step_rank", kStepRank);
  writer.set_float("attention.layer_norm_rms_epsilon", 1e-5f);
  constexpr double kSmall = 0.05;
  writer.add_matrix("token_embd.weight", d, options.vocabulary_size, 1.0);
  writer.add_vector("output_norm.weight", d, 1.0, 0.1);
  writer.add_vector("blk.0.attn_norm.weight", d, 1.0, 0.1);
  writer.add_matrix("blk.0.ssm_in.weight", d, 2 * kInner, kSmall);
  writer.add_matrix("blk.0.ssm_conv1d.weight", kConvolution, kInner, kSmall);
  writer.add_vector("blk.0.ssm_conv1d.bias", kInner, 0.0, kSmall);
  writer.add_matrix("blk.0.ssm_x.weight", kInner, kStepRank + 2 * kState, kSmall);
  writer.add_matrix("blk.0.ssm_dt.weight", kStepRank, kInner, kSmall);
  writer.add_vector("blk.0.ssm_dt.bias", kInner, 0.0, kSmall);
  writer.add_matrix("blk.0.ssm_a", kState, kInner, kSmall);
  writer.add_vector("blk.0.ssm_d", kInner, 1.0, kSmall);
  writer.add_matrix("blk.0.ssm_out.weight", kInner, d, kSmall);
  writer.write(path);
}

}  // namespace firp
