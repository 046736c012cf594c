#include "model/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "model/ggml_log.h"

namespace firp {
namespace {

/// What tells the architectures apart.
struct Architecture {
  std::string_view name;
  bool interleaved_rope;
  bool needs_qkv_bias;
  bool qk_norm;
  bool rope_factors;  ///< llama.cpp reads rope_freqs.weight and rope_factors_*.weight
};

constexpr Architecture kArchitectures[] = {
    {.name = "llama",
     .interleaved_rope = true,
     .needs_qkv_bias = false,
     .qk_norm = false,
     .rope_factors = true},
    {.name = "qwen2",
     .interleaved_rope = false,
     .needs_qkv_bias = true,
     .qk_norm = false,
     .rope_factors = false},
    {.name = "qwen3",
     .interleaved_rope = false,
     .needs_qkv_bias = false,
     .qk_norm = true,
     .rope_factors = false},
};

// Sane bounds, some times what the largest models have: a damaged file must not make us allocate by
// its numbers.
constexpr int kMostLayers = 1024;
constexpr int kMostHidden = 1 << 16;
constexpr int kMostHeads = 1024;
constexpr int kMostHeadSize = 1024;
constexpr int kMostFeedForward = 1 << 20;
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

/// The names of what some files of these architectures ask for and the forward pass does not have.
void refuse_missing_features(const Reader& reader, int trained_context) {
  const GgufFile& file = reader.file();
  for (const std::string_view name : {"attention.sliding_window", "expert_count"}) {
    if (file.is_array(reader.key(name))) {
      reader.refuse(fmt::format("{} has a value for each layer: not supported", reader.key(name)));
    }
  }
  const auto window = file.find_int(reader.key("attention.sliding_window")).value_or(0);
  if (window > 0 && window < trained_context) {
    reader.refuse(fmt::format("sliding-window attention ({} = {}) is not supported",
                              reader.key("attention.sliding_window"), window));
  }
  if (file.find_int(reader.key("expert_count")).value_or(0) > 0) {
    reader.refuse(
        fmt::format("mixtures of experts ({}) are not supported", reader.key("expert_count")));
  }
  if (!file.find_bool(reader.key("attention.causal")).value_or(true)) {
    reader.refuse(fmt::format("attention that is not causal ({}) is not supported",
                              reader.key("attention.causal")));
  }
  for (const std::string_view name :
       {"attention.max_alibi_bias", "attention.clamp_kqv", "attention.scale", "embedding_scale",
        "residual_scale", "logit_scale", "attn_logit_softcapping", "final_logit_softcapping",
        "rope.scaling.alpha"}) {
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
  if (rope.dimensions != head_size || head_size % 2 != 0) {
    reader.refuse(
        fmt::format("{} is {}: only an even one that equals the size of a head ({}) is "
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
  refuse_missing_features(reader, config.trained_context);
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
  config.rope = read_rope(reader, *architecture, config.head_size, config.trained_context);

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

  config.qkv_bias =
      architecture->needs_qkv_bias || file.find_tensor("blk.0.attn_q.bias") != nullptr;
  config.qk_norm = architecture->qk_norm;
  config.tied_head = file.find_tensor("output.weight") == nullptr;
  return config;
}

}  // namespace firp
