#include "model/tiny_model.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>
#include <utility>

#include "model/error.h"
#include "model/gguf_pointers.h"

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
  void set_float(std::string_view name, float value) {
    gguf_set_val_f32(gguf_.get(), key(name).c_str(), value);
  }
  std::string key(std::string_view name) const {
    return fmt::format("{}.{}", options_.architecture, name);
  }

  /// A matrix of the model's type, with normal weights.
  void add_matrix(const std::string& name, int columns, int rows, double deviation) {
    std::vector<float> values(static_cast<std::size_t>(columns) * static_cast<std::size_t>(rows));
    for (float& value : values) {
      value = random_.normal(0.0, deviation);
    }
    add(name, options_.type, columns, rows, values);
  }

  void add_vector(const std::string& name, int size, double mean, double deviation) {
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) {
      value = random_.normal(mean, deviation);
    }
    add(name, GGML_TYPE_F32, size, 1, values);
  }

  void add(const std::string& name, ggml_type type, int columns, int rows,
           const std::vector<float>& values) {
    if (columns % ggml_blck_size(type) != 0) {
      throw Error(fmt::format("tiny model: {} has {} columns, not a multiple of {}'s block of {}",
                              name, columns, ggml_type_name(type), ggml_blck_size(type)));
    }
    ggml_tensor* tensor = rows == 1 ? ggml_new_tensor_1d(ggml_.get(), type, columns)
                                    : ggml_new_tensor_2d(ggml_.get(), type, columns, rows);
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
  writer.set_int("rope.dimension_count", o.head_size);
  writer.set_float("rope.freq_base", o.rope_base);
  writer.set_float("attention.layer_norm_rms_epsilon", 1e-5f);
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
  const int query_size = o.query_heads * o.head_size;
  const int kv_size = o.kv_heads * o.head_size;
  writer.add_matrix("token_embd.weight", o.hidden_size, o.vocabulary_size,
                    o.tied_head ? o.logit_spread * unit(o.hidden_size) : 1.0);
  writer.add_vector("output_norm.weight", o.hidden_size, 1.0, 0.1);
  if (!o.tied_head) {
    writer.add_matrix("output.weight", o.hidden_size, o.vocabulary_size,
                      o.logit_spread * unit(o.hidden_size));
  }
  if (o.rope_frequency_factors) {
    if (o.architecture != "llama") {
      throw Error("tiny model: only the llama architecture has rope_freqs.weight");
    }
    std::vector<float> factors(static_cast<std::size_t>(o.head_size / 2));
    for (std::size_t pair = 0; pair < factors.size(); ++pair) {  // from 1 to 8, as Llama 3.1 has
      factors[pair] = std::exp2(3.0f * static_cast<float>(pair) /
                                static_cast<float>(std::max<std::size_t>(factors.size() - 1, 1)));
    }
    writer.add("rope_freqs.weight", GGML_TYPE_F32, o.head_size / 2, 1, factors);
  }
  for (int layer = 0; layer < o.layers; ++layer) {
    const auto name = [layer](std::string_view part) {
      return fmt::format("blk.{}.{}", layer, part);
    };
    writer.add_vector(name("attn_norm.weight"), o.hidden_size, 1.0, 0.1);
    writer.add_matrix(name("attn_q.weight"), o.hidden_size, query_size, 1.5 * unit(o.hidden_size));
    writer.add_matrix(name("attn_k.weight"), o.hidden_size, kv_size, 1.5 * unit(o.hidden_size));
    writer.add_matrix(name("attn_v.weight"), o.hidden_size, kv_size, unit(o.hidden_size));
    writer.add_matrix(name("attn_output.weight"), query_size, o.hidden_size, unit(query_size));
    if (o.architecture == "qwen2") {
      writer.add_vector(name("attn_q.bias"), query_size, 0.0, 0.5);
      writer.add_vector(name("attn_k.bias"), kv_size, 0.0, 0.5);
      writer.add_vector(name("attn_v.bias"), kv_size, 0.0, 0.5);
    }
    if (o.architecture == "qwen3") {
      writer.add_vector(name("attn_q_norm.weight"), o.head_size, 1.0, 0.1);
      writer.add_vector(name("attn_k_norm.weight"), o.head_size, 1.0, 0.1);
    }
    writer.add_vector(name("ffn_norm.weight"), o.hidden_size, 1.0, 0.1);
    writer.add_matrix(name("ffn_gate.weight"), o.hidden_size, o.feed_forward_size,
                      unit(o.hidden_size));
    writer.add_matrix(name("ffn_up.weight"), o.hidden_size, o.feed_forward_size,
                      unit(o.hidden_size));
    writer.add_matrix(name("ffn_down.weight"), o.feed_forward_size, o.hidden_size,
                      unit(o.feed_forward_size));
  }
  writer.write(path);
}

}  // namespace firp
