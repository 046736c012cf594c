#include "model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "base/error.h"
#include "model/ggml_log.h"

namespace firp {
namespace {

/// What tells the architectures apart. llama.cpp's src/models/ has a file for each.
struct Architecture {
  std::string_view name;
  bool interleaved_rope = false;
  bool rope_factors = false;  ///< reads rope_freqs.weight and rope_factors_*.weight
  bool needs_qkv_bias = false;
  HeadNorms head_norms = HeadNorms::kNone;
  bool norms_before = true;
  bool norms_after = false;
  Activation activation = Activation::kSilu;
  bool fused_gate_up = false;
  bool scaled_embedding = false;  ///< by the root of its width
  /// Where the file gives none; 0: none. nullopt: the architecture has no such cap.
  std::optional<float> usual_attention_softcap = std::nullopt;
  std::optional<float> usual_logit_softcap = std::nullopt;
  bool scales = false;  ///< reads embedding_scale, residual_scale, logit_scale, ...
  std::optional<ExpertWeights> expert_weights = std::nullopt;  ///< nullopt: no mixtures

  /// Of so many layers the last sees all positions, the others a window, unless the file says
  /// which. 0: all layers see all.
  int window_period = 0;
  bool ignores_window = false;    ///< as llama.cpp does, where files name one
  int usual_window = 0;           ///< where the file gives none; 0: then there are none
  float window_rope_base = 0;     ///< windowed layers turn by this base, unscaled; 0: as the others
  bool windows_unscaled = false;  ///< they turn by the same base, unscaled
  int unturned_period = 0;        ///< of so many layers the last has no RoPE; 0: all have it

  /// The largest model of a family: of so many layers. Its scores are scaled by the share of the
  /// width that a head has, instead of by a head's size.
  int layers_scaled_by_width = 0;
};

constexpr Architecture kArchitectures[] = {
    {.name = "llama",
     .interleaved_rope = true,
     .rope_factors = true,
     .expert_weights = ExpertWeights::kOfUsed},  // Mixtral
    {.name = "qwen2", .needs_qkv_bias = true},
    {.name = "qwen3", .head_norms = HeadNorms::kEach},
    {.name = "qwen3moe", .head_norms = HeadNorms::kEach, .expert_weights = ExpertWeights::kOfUsed},
    {.name = "gemma2",
     .norms_after = true,
     .activation = Activation::kGelu,
     .scaled_embedding = true,
     .usual_attention_softcap = 50.0f,
     .usual_logit_softcap = 30.0f,
     .window_period = 2,
     .usual_window = 4096,
     .layers_scaled_by_width = 46},
    {.name = "gemma3",
     .head_norms = HeadNorms::kEach,
     .norms_after = true,
     .activation = Activation::kGelu,
     .scaled_embedding = true,
     .usual_logit_softcap = 0.0f,
     .window_period = 6,
     .window_rope_base = 10000.0f,
     .layers_scaled_by_width = 62},
    {.name = "phi3", .rope_factors = true, .fused_gate_up = true, .ignores_window = true},
    {.name = "olmo2",
     .head_norms = HeadNorms::kAll,
     .norms_before = false,
     .norms_after = true,
     .window_period = 4,
     .windows_unscaled = true},
    {.name = "olmoe", .head_norms = HeadNorms::kAll, .expert_weights = ExpertWeights::kOfAll},
    {.name = "smollm3", .interleaved_rope = true, .unturned_period = 4},
    {.name = "granite", .interleaved_rope = true, .rope_factors = true, .scales = true},
    {.name = "granitemoe",
     .interleaved_rope = true,
     .rope_factors = true,
     .scales = true,
     .expert_weights = ExpertWeights::kOfUsed},
};

// Sane bounds, some times what the largest models have: a damaged file must not make us allocate by
// its numbers.
constexpr int kMostLayers = 1024;
constexpr int kMostHidden = 1 << 16;
constexpr int kMostHeads = 1024;
constexpr int kMostHeadSize = 1024;
constexpr int kMostFeedForward = 1 << 20;
constexpr int kMostExperts = 1 << 10;
constexpr int kMostVocabulary = 1 << 22;
constexpr int kMostContext = 1 << 28;

class Reader {
 public:
  Reader(const GgufFile& file, std::string architecture)
      : file_(file), architecture_(std::move(architecture)) {}

  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }

  [[noreturn]] void refuse(const std::string& reason) const {
    throw Unsupported(fmt::format("{}: {}", file_.path().string(), reason));
  }
  [[noreturn]] void fail(const std::string& reason) const {
    throw Error(fmt::format("{}: {}", file_.path().string(), reason));
  }

  /// An integer in 1 .. most; `otherwise` where the key is missing (0: it must be there).
  int size(std::string_view name, int most, int otherwise = 0) const {
    const std::string full = key(name);
    if (file_.is_array(full)) {
      refuse(fmt::format("{} has a value for each layer: only one for all is supported", full));
    }
    const auto value =
        otherwise == 0 ? file_.get_int(full) : file_.find_int(full).value_or(otherwise);
    if (value < 1 || value > most) {
      fail(fmt::format("{} is {}, not in 1..{}", full, value, most));
    }
    return static_cast<int>(value);
  }

  float number(std::string_view name, float otherwise) const {
    if (file_.is_array(key(name))) {
      refuse(fmt::format("{} has several values: only one is supported", key(name)));
    }
    const auto value = static_cast<float>(file_.find_float(key(name)).value_or(otherwise));
    if (!std::isfinite(value)) {
      fail(fmt::format("{} is not finite", key(name)));
    }
    return value;
  }

  const GgufFile& file() const { return file_; }

 private:
  const GgufFile& file_;
  std::string architecture_;
};

/// What some files of these architectures ask for and the forward pass does not have.
void refuse_missing_features(const Reader& reader, const Architecture& architecture,
                             int trained_context) {
  const GgufFile& file = reader.file();
  for (const std::string_view name : {"attention.sliding_window", "expert_count"}) {
    if (file.is_array(reader.key(name))) {
      reader.refuse(fmt::format("{} has a value for each layer: not supported", reader.key(name)));
    }
  }
  const auto window = file.find_int(reader.key("attention.sliding_window")).value_or(0);
  if (architecture.window_period == 0 && !architecture.ignores_window && window > 0 &&
      window < trained_context) {
    reader.refuse(fmt::format("sliding-window attention ({} = {}) is not supported for {}",
                              reader.key("attention.sliding_window"), window, architecture.name));
  }
  if (!architecture.expert_weights && file.find_int(reader.key("expert_count")).value_or(0) > 0) {
    reader.refuse(fmt::format("mixtures of experts ({}) are not supported for {}",
                              reader.key("expert_count"), architecture.name));
  }
  if (!file.find_bool(reader.key("attention.causal")).value_or(true)) {
    reader.refuse(fmt::format("attention that is not causal ({}) is not supported",
                              reader.key("attention.causal")));
  }
  std::vector<std::string_view> unknown = {"attention.max_alibi_bias", "attention.clamp_kqv",
                                           "rope.scaling.alpha", "expert_weights_scale"};
  if (!architecture.scales) {
    unknown.insert(unknown.end(),
                   {"attention.scale", "embedding_scale", "residual_scale", "logit_scale"});
  }
  if (!architecture.usual_attention_softcap) unknown.push_back("attn_logit_softcapping");
  if (!architecture.usual_logit_softcap) unknown.push_back("final_logit_softcapping");
  for (const std::string_view name : unknown) {
    if (reader.number(name, 0.0f) != 0.0f) {
      reader.refuse(fmt::format("{} is not supported", reader.key(name)));
    }
  }
}

/// Divisors of the frequencies, one a pair: Llama 3's rope_freqs.weight, or LongRoPE's factors.
/// Empty where the file has none.
std::vector<float> read_rope_factors(const Reader& reader, const Architecture& architecture,
                                     std::string_view name, int pairs) {
  const Tensor* tensor = reader.file().find_tensor(name);
  if (tensor == nullptr) {
    return {};
  }
  if (!architecture.rope_factors) {
    reader.refuse(fmt::format("{} is not supported for {}", name, architecture.name));
  }
  if (tensor->type != GGML_TYPE_F32 || tensor->elements() != pairs) {
    reader.fail(fmt::format("{} has {} elements of type {}, expected {} of type f32", name,
                            tensor->elements(), ggml_type_name(tensor->type), pairs));
  }
  std::vector<float> factors = dequantize(*tensor);
  for (const float factor : factors) {
    if (!std::isfinite(factor) || factor <= 0.0f) {
      reader.fail(fmt::format("{} holds {}, which is no divisor of a frequency", name, factor));
    }
  }
  return factors;
}

/// YaRN (https://arxiv.org/abs/2309.00071): how far pair k keeps its own frequency (1) or takes the
/// interpolated one (0). As ggml computes it, with beta_fast = 32 and beta_slow = 1.
std::vector<float> yarn_ramp(int dimensions, int original_context, float base) {
  const auto pair_with_turns = [&](float turns) {
    return static_cast<float>(dimensions) *
           std::log(static_cast<float>(original_context) /
                    (turns * 2.0f * std::numbers::pi_v<float>)) /
           (2.0f * std::log(base));
  };
  const float low = std::max(0.0f, std::floor(pair_with_turns(32.0f)));
  const float high = std::min(static_cast<float>(dimensions - 1), std::ceil(pair_with_turns(1.0f)));
  std::vector<float> ramp(static_cast<std::size_t>(dimensions / 2));
  for (std::size_t pair = 0; pair < ramp.size(); ++pair) {
    const float y = (static_cast<float>(pair) - low) / std::max(0.001f, high - low);
    ramp[pair] = 1.0f - std::clamp(y, 0.0f, 1.0f);
  }
  return ramp;
}

RopeConfig read_rope(const Reader& reader, const Architecture& architecture, int head_size,
                     int trained_context) {
  RopeConfig rope;
  rope.interleaved = architecture.interleaved_rope;
  rope.dimensions = reader.size("rope.dimension_count", kMostHeadSize, head_size);
  if (rope.dimensions > head_size || rope.dimensions % 2 != 0) {
    reader.refuse(
        fmt::format("{} is {}: only an even one, up to the size of a head ({}), is "
                    "supported",
                    reader.key("rope.dimension_count"), rope.dimensions, head_size));
  }

  const float base = reader.number("rope.freq_base", 10000.0f);
  if (base <= 1.0f) {
    reader.fail(fmt::format("{} is {}, not above 1", reader.key("rope.freq_base"), base));
  }
  const std::string type =
      reader.file().find_string(reader.key("rope.scaling.type")).value_or("linear");
  if (type != "none" && type != "linear" && type != "yarn" && type != "longrope") {
    reader.refuse(fmt::format("{} is '{}': expected none, linear, yarn or longrope",
                              reader.key("rope.scaling.type"), one_line(type)));
  }
  // rope.scale_linear is what old files call it.
  const float factor =
      reader.number("rope.scaling.factor", reader.number("rope.scale_linear", 0.0f));
  if (factor < 0.0f) {
    reader.fail(fmt::format("{} is negative", reader.key("rope.scaling.factor")));
  }
  const float scale = factor == 0.0f || type == "none" ? 1.0f : 1.0f / factor;
  if (!std::isnormal(scale)) {
    reader.fail(fmt::format("{} is {}", reader.key("rope.scaling.factor"), factor));
  }
  const int original_context =
      reader.size("rope.scaling.original_context_length", kMostContext, trained_context);

  const std::size_t pairs = static_cast<std::size_t>(rope.dimensions / 2);
  const std::vector<float> ramp = type == "yarn"
                                      ? yarn_ramp(rope.dimensions, original_context, base)
                                      : std::vector<float>(pairs, 0.0f);
  const std::vector<double> plain = rope_frequencies(base, rope.dimensions);
  const auto frequencies_with = [&](std::string_view tensor) {
    const std::vector<float> factors =
        read_rope_factors(reader, architecture, tensor, static_cast<int>(pairs));
    std::vector<float> frequencies(pairs);
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const double own = plain[pair] / (factors.empty() ? 1.0 : factors[pair]);
      const double kept = ramp[pair];
      frequencies[pair] = static_cast<float>(own * (scale * (1.0 - kept) + kept));
    }
    return frequencies;
  };
  rope.original_context = original_context;
  if (type == "longrope") {
    rope.frequencies = frequencies_with("rope_factors_short.weight");
    rope.long_frequencies = frequencies_with("rope_factors_long.weight");
  } else {
    rope.frequencies = frequencies_with("rope_freqs.weight");
  }

  rope.magnitude = reader.number("rope.scaling.attn_factor", 1.0f);
  if (type == "yarn" && scale < 1.0f) {
    rope.magnitude *= 1.0f + 0.1f * std::log(1.0f / scale);
  }
  if (!std::isfinite(rope.magnitude) || rope.magnitude <= 0.0f) {
    reader.fail(fmt::format("{} gives an attention scale of {}",
                            reader.key("rope.scaling.attn_factor"), rope.magnitude));
  }
  return rope;
}

/// The rotation of windowed layers: by a base of their own, or as that of the others without its
/// scaling.
RopeConfig window_rope(const Reader& reader, const Architecture& architecture,
                       const RopeConfig& of_others) {
  const float otherwise = architecture.window_rope_base > 0
                              ? architecture.window_rope_base
                              : reader.number("rope.freq_base", 10000.0f);
  const float base = reader.number("rope.freq_base_swa", otherwise);
  if (base <= 1.0f) {
    reader.fail(fmt::format("{} is {}, not above 1", reader.key("rope.freq_base_swa"), base));
  }
  const std::vector<double> frequencies = rope_frequencies(base, of_others.dimensions);
  return {.interleaved = of_others.interleaved,
          .dimensions = of_others.dimensions,
          .frequencies = {frequencies.begin(), frequencies.end()}};
}

/// Which layers have a window: of every `period` all but the last, or what the file says.
std::vector<bool> windowed_layers(const Reader& reader, int layers, int period) {
  const std::string key = reader.key("attention.sliding_window_pattern");
  std::vector<bool> windowed(layers);
  if (reader.file().is_array(key)) {
    const std::vector<std::int64_t> pattern = *reader.file().find_int_array(key);
    if (std::ssize(pattern) < layers) {
      reader.fail(fmt::format("{} has {} values for {} layers", key, pattern.size(), layers));
    }
    for (int layer = 0; layer < layers; ++layer) windowed[layer] = pattern[layer] != 0;
    return windowed;
  }
  period = static_cast<int>(reader.file().find_int(key).value_or(period));
  if (period < 0) reader.fail(fmt::format("{} is negative", key));
  for (int layer = 0; layer < layers; ++layer) {
    windowed[layer] = period == 0 || layer % period < period - 1;
  }
  return windowed;
}

/// Fills in what differs by layer, and the rotations that layers use.
void read_layers(const Reader& reader, const Architecture& architecture, ModelConfig& config) {
  config.by_layer.assign(config.layers, {});
  config.ropes = {read_rope(reader, architecture, config.head_size, config.trained_context)};
  if (architecture.scales &&
      !reader.file().find_bool(reader.key("rope.scaling.finetuned")).value_or(true)) {
    for (LayerConfig& layer : config.by_layer) layer.rope = -1;
  }
  for (int i = 0; architecture.unturned_period > 0 && i < config.layers; ++i) {
    if ((i + 1) % architecture.unturned_period == 0) config.by_layer[i].rope = -1;
  }
  if (architecture.window_period == 0) return;
  const std::string_view key = "attention.sliding_window";
  const std::int64_t in_file =
      reader.file().find_int(reader.key(key)).value_or(architecture.usual_window);
  if (in_file == 0) return;
  const int window = reader.size(key, kMostContext, architecture.usual_window);
  const bool turns_otherwise = architecture.window_rope_base > 0 || architecture.windows_unscaled;
  if (turns_otherwise) config.ropes.push_back(window_rope(reader, architecture, config.ropes[0]));
  const std::vector<bool> windowed =
      windowed_layers(reader, config.layers, architecture.window_period);
  for (int i = 0; i < config.layers; ++i) {
    if (windowed[i]) config.by_layer[i] = {.window = window, .rope = turns_otherwise ? 1 : 0};
  }
}

void read_experts(const Reader& reader, const Architecture& architecture, ModelConfig& config) {
  if (!architecture.expert_weights ||
      reader.file().find_int(reader.key("expert_count")).value_or(0) == 0) {
    return;
  }
  config.experts = reader.size("expert_count", kMostExperts);
  config.experts_used = reader.size("expert_used_count", config.experts);
  config.expert_weights = *architecture.expert_weights;
  config.feed_forward_size =
      reader.size("expert_feed_forward_length", kMostFeedForward, config.feed_forward_size);
  // Experts are packed one after the other, and each begins with a block of outputs; what they
  // give is rounded in groups of 32.
  if (config.feed_forward_size % 32 != 0 || config.hidden_size % 32 != 0) {
    reader.refuse(fmt::format("experts of {} x {} are not supported: only multiples of 32",
                              config.feed_forward_size, config.hidden_size));
  }
}

float not_negative(const Reader& reader, std::string_view name, float otherwise) {
  const float value = reader.number(name, otherwise);
  if (value < 0.0f) reader.fail(fmt::format("{} is negative", reader.key(name)));
  return value;
}

/// A factor that is 0 is none, as one that is missing.
float factor_or(const Reader& reader, std::string_view name, float otherwise) {
  const float value = not_negative(reader, name, 0.0f);
  return value == 0.0f ? otherwise : value;
}

void read_scales(const Reader& reader, const Architecture& architecture, ModelConfig& config) {
  const auto d = static_cast<float>(config.hidden_size);
  const int share = config.layers == architecture.layers_scaled_by_width
                        ? config.hidden_size / config.query_heads
                        : config.head_size;
  config.attention_scale = 1.0f / std::sqrt(static_cast<float>(share));
  if (architecture.scaled_embedding) config.embedding_scale = std::sqrt(d);
  if (const auto usual = architecture.usual_attention_softcap) {
    config.attention_softcap = not_negative(reader, "attn_logit_softcapping", *usual);
  }
  if (const auto usual = architecture.usual_logit_softcap) {
    config.logit_softcap = not_negative(reader, "final_logit_softcapping", *usual);
  }
  if (architecture.scales) {
    config.embedding_scale = factor_or(reader, "embedding_scale", 1);
    config.residual_scale = factor_or(reader, "residual_scale", 1);
    config.logit_scale = 1.0f / factor_or(reader, "logit_scale", 1);
    config.attention_scale = factor_or(reader, "attention.scale", config.attention_scale);
  }
}

}  // namespace

std::vector<double> rope_frequencies(float base, int dimensions) {
  // llama.cpp multiplies the angle by this F32 ratio from pair to pair; its rounding is part of the
  // frequencies.
  const double ratio = std::pow(base, -2.0f / static_cast<float>(dimensions));
  std::vector<double> frequencies;
  for (int pair = 0; pair < dimensions / 2; ++pair) frequencies.push_back(std::pow(ratio, pair));
  return frequencies;
}

ModelConfig read_model_config(const GgufFile& file) {
  ModelConfig config;
  config.architecture = file.get_string("general.architecture");
  const auto architecture =
      std::ranges::find(kArchitectures, std::string_view(config.architecture), &Architecture::name);
  if (architecture == std::end(kArchitectures)) {
    std::string known;
    for (const Architecture& each : kArchitectures) {
      known += fmt::format("{}{}", known.empty() ? "" : ", ", each.name);
    }
    throw Unsupported(fmt::format("{}: the architecture '{}' is not supported (supported: {})",
                                  file.path().string(), one_line(config.architecture), known));
  }
  const Reader reader(file, config.architecture);
  config.name = file.find_string("general.name").value_or(file.path().filename().string());

  config.layers = reader.size("block_count", kMostLayers);
  config.hidden_size = reader.size("embedding_length", kMostHidden);
  config.trained_context = reader.size("context_length", kMostContext);
  refuse_missing_features(reader, *architecture, config.trained_context);
  config.feed_forward_size = reader.size("feed_forward_length", kMostFeedForward);
  config.query_heads = reader.size("attention.head_count", kMostHeads);
  config.kv_heads = reader.size("attention.head_count_kv", kMostHeads, config.query_heads);
  if (config.query_heads % config.kv_heads != 0) {
    reader.fail(fmt::format("{} query heads cannot share {} key/value heads evenly",
                            config.query_heads, config.kv_heads));
  }
  const int even_share = std::max(1, config.hidden_size / config.query_heads);
  config.head_size = reader.size("attention.key_length", kMostHeadSize, even_share);
  if (reader.size("attention.value_length", kMostHeadSize, even_share) != config.head_size) {
    reader.refuse(fmt::format("{} differs from {}: not supported",
                              reader.key("attention.value_length"),
                              reader.key("attention.key_length")));
  }

  config.rms_norm_epsilon =
      static_cast<float>(file.get_float(reader.key("attention.layer_norm_rms_epsilon")));
  if (!std::isfinite(config.rms_norm_epsilon) || config.rms_norm_epsilon < 0.0f ||
      config.rms_norm_epsilon > 1.0f) {
    reader.fail(fmt::format("{} is {}", reader.key("attention.layer_norm_rms_epsilon"),
                            config.rms_norm_epsilon));
  }
  read_layers(reader, *architecture, config);
  read_scales(reader, *architecture, config);
  read_experts(reader, *architecture, config);

  const std::int64_t vocabulary = file.get_tensor("token_embd.weight").rows();
  if (vocabulary > kMostVocabulary) {
    reader.fail(
        fmt::format("token_embd.weight has {} rows: a vocabulary of at most {} is supported",
                    vocabulary, kMostVocabulary));
  }
  config.vocabulary_size = static_cast<int>(vocabulary);
  const auto tokens = file.find_array_size("tokenizer.ggml.tokens");
  if (tokens && *tokens != static_cast<std::size_t>(vocabulary)) {
    reader.fail(fmt::format("token_embd.weight has {} rows, tokenizer.ggml.tokens {} tokens",
                            vocabulary, *tokens));
  }

  config.qkv_bias = architecture->needs_qkv_bias ||
                    file.find_tensor("blk.0.attn_q.bias") != nullptr ||
                    file.find_tensor("blk.0.attn_qkv.bias") != nullptr;
  config.activation = architecture->activation;
  config.head_norms = architecture->head_norms;
  if (config.head_norms == HeadNorms::kAll && config.qkv_bias) {
    reader.refuse("a norm of all heads together after biases is not supported");
  }
  config.norms_before = architecture->norms_before;
  config.norms_after = architecture->norms_after;
  config.fused_qkv = file.find_tensor("blk.0.attn_qkv.weight") != nullptr;
  config.fused_gate_up = architecture->fused_gate_up;
  config.tied_head = file.find_tensor("output.weight") == nullptr;
  return config;
}

}  // namespace firp
