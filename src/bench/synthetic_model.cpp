#include "bench/synthetic_model.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/gguf_pointers.h"

namespace firp {
namespace {

struct Shape {
  std::string_view name;
  int layers, hidden_size, query_heads, kv_heads, head_size, feed_forward_size, vocabulary_size;
  bool tied_head;
  float rope_base;
  int experts = 0, experts_used = 0;
};

constexpr Shape kShapes[] = {
    {"smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, true, 1e5f},
    {"llama-1b", 16, 2048, 32, 8, 64, 8192, 128256, true, 5e5f},     // Llama 3.2 1B
    {"llama-3b", 28, 3072, 24, 8, 128, 8192, 128256, true, 5e5f},    // Llama 3.2 3B
    {"llama-7b", 32, 4096, 32, 32, 128, 11008, 32000, false, 1e4f},  // Llama 2 7B, Vicuna
    {"llama-8b", 32, 4096, 32, 8, 128, 14336, 128256, false, 5e5f},  // Llama 3.1 8B
    // As large as OLMoE 1B-7B, and as fast: 64 experts, of which a row uses 8.
    {"mixture-7b", 16, 2048, 16, 16, 128, 1024, 50304, false, 1e4f, 64, 8},
};

const Shape& find_shape(std::string_view name) {
  std::string known;
  for (const Shape& shape : kShapes) {
    if (shape.name == name) return shape;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", shape.name);
  }
  throw Error(fmt::format("there is no shape '{}' (there are: {})", one_line(name), known));
}

ModelConfig config_of(const Shape& shape, std::string name) {
  ModelConfig config;
  config.architecture = "llama";
  config.name = std::move(name);
  config.layers = shape.layers;
  config.hidden_size = shape.hidden_size;
  config.query_heads = shape.query_heads;
  config.kv_heads = shape.kv_heads;
  config.head_size = shape.head_size;
  config.feed_forward_size = shape.feed_forward_size;
  config.experts = shape.experts;
  config.experts_used = shape.experts_used;
  config.vocabulary_size = shape.vocabulary_size;
  config.trained_context = 8192;
  config.rms_norm_epsilon = 1e-5f;
  const std::vector<double> frequencies = rope_frequencies(shape.rope_base, shape.head_size);
  config.by_layer.assign(shape.layers, {});
  config.ropes = {
      {.dimensions = shape.head_size, .frequencies = {frequencies.begin(), frequencies.end()}}};
  config.attention_scale = 1 / std::sqrt(static_cast<float>(shape.head_size));
  config.tied_head = shape.tied_head;
  return config;
}

/// What the system can give without swapping; no limit where it does not tell.
double free_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("MemAvailable:")) return 1024 * std::stod(line.substr(13));
  }
  return std::numeric_limits<double>::infinity();
}

/// A model's header and its tensors, whose bytes stay where they are.
class GgufHeader {
 public:
  GgufHeader(const Model& model, float rope_base)
      : gguf_(gguf_init_empty()),
        ggml_(ggml_init({.mem_size = kMostTensors * ggml_tensor_overhead(),
                         .mem_buffer = nullptr,
                         .no_alloc = true})) {
    const ModelConfig& c = model.config();
    gguf_set_val_str(gguf_.get(), "general.architecture", "llama");
    gguf_set_val_str(gguf_.get(), "general.name", c.name.c_str());
    gguf_set_val_str(gguf_.get(), "tokenizer.ggml.model", "no_vocab");
    const auto set_number = [this](const char* key, int value) {
      gguf_set_val_u32(gguf_.get(), key, static_cast<std::uint32_t>(value));
    };
    for (const auto& [key, value] : {std::pair{"llama.vocab_size", c.vocabulary_size},
                                     {"llama.block_count", c.layers},
                                     {"llama.context_length", c.trained_context},
                                     {"llama.embedding_length", c.hidden_size},
                                     {"llama.feed_forward_length", c.feed_forward_size},
                                     {"llama.attention.head_count", c.query_heads},
                                     {"llama.attention.head_count_kv", c.kv_heads},
                                     {"llama.attention.key_length", c.head_size},
                                     {"llama.attention.value_length", c.head_size},
                                     {"llama.rope.dimension_count", c.head_size}}) {
      set_number(key, value);
    }
    if (c.experts > 0) {
      set_number("llama.expert_count", c.experts);
      set_number("llama.expert_used_count", c.experts_used);
    }
    gguf_set_val_f32(gguf_.get(), "llama.rope.freq_base", rope_base);
    gguf_set_val_f32(gguf_.get(), "llama.attention.layer_norm_rms_epsilon", c.rms_norm_epsilon);

    add("token_embd.weight", model.token_embedding());
    add("output_norm.weight", model.output_norm());
    if (!c.tied_head) add("output.weight", model.head());
    const LayerParts<PartSpec, PartSpec> specs = layer_specs(c);
    for (int i = 0; i < c.layers; ++i) {
      for_each_part(model.layers()[i], specs, [&](const Tensor* tensor, const PartSpec& spec) {
        if (spec.outputs > 0) add(fmt::format("blk.{}.{}", i, spec.name), *tensor, spec.experts);
      });
    }
  }

  std::size_t file_bytes() const { return gguf_get_meta_size(gguf_.get()) + tensor_bytes_; }
  bool write(std::FILE* file) const {
    return gguf_write_to_file_ptr(gguf_.get(), file, /*only_meta=*/false);
  }

 private:
  void add(const std::string& name, const Tensor& tensor, int experts = 1) {
    ggml_tensor* const to = tensor.rows() == 1
                                ? ggml_new_tensor_1d(ggml_.get(), tensor.type, tensor.columns())
                                : ggml_new_tensor_3d(ggml_.get(), tensor.type, tensor.columns(),
                                                     tensor.rows() / experts, experts);
    ggml_set_name(to, name.c_str());
    to->data = const_cast<std::byte*>(tensor.data.data());
    gguf_add_tensor(gguf_.get(), to);
    tensor_bytes_ += GGML_PAD(tensor.data.size(), GGUF_DEFAULT_ALIGNMENT);
  }

  static constexpr std::size_t kMostTensors = 1024;
  GgufPointer gguf_;
  GgmlPointer ggml_;
  std::size_t tensor_bytes_ = 0;
};

void require_memory(const ModelConfig& c, ggml_type type) {
  const double layer = c.hidden_size * (2.0 * c.query_size() + 2.0 * c.kv_size() +
                                        3.0 * c.feed_forward_size * std::max(1, c.experts));
  const double ends = static_cast<double>(c.hidden_size) * c.vocabulary_size;
  // The packed layers and head; one layer, the embedding and an untied head as they are in files.
  const double weights = c.layers * layer + ends + layer + (c.tied_head ? 1 : 2) * ends;
  const double bytes = weights * static_cast<double>(ggml_type_size(type)) / ggml_blck_size(type);
  if (const double available = free_bytes(); bytes > available) {
    throw Error(fmt::format("{} takes {:.1f} GB of memory, and {:.1f} GB are free", c.name,
                            bytes / 1e9, available / 1e9));
  }
}

}  // namespace

SyntheticModel::SyntheticModel(std::string_view name) {
  const std::size_t colon = name.find(':');
  if (colon == std::string_view::npos) {
    throw Error(fmt::format("'{}' is not SHAPE:TYPE, as in llama-7b:q4_0", one_line(name)));
  }
  const Shape& shape = find_shape(name.substr(0, colon));
  const ggml_type type = parse_matrix_type(name.substr(colon + 1));
  rope_base_ = shape.rope_base;
  ModelConfig c = config_of(shape, fmt::format("{}:{}", shape.name, ggml_type_name(type)));
  require_whole_blocks(type, c.hidden_size);
  require_whole_blocks(type, c.query_size());
  require_whole_blocks(type, c.feed_forward_size);
  require_memory(c, type);

  // Deviations of 1 / sqrt(inputs) keep what the layers add to the residual stream near 1.
  const auto matrix = [&](std::string_view role, int outputs, int inputs, float scale,
                          ggml_type of) {
    const float deviation = scale / std::sqrt(static_cast<float>(inputs));
    const auto seed = static_cast<unsigned>(matrices_.size() + 1);
    return &matrices_.emplace_back(std::string(role), of, outputs, inputs, deviation, seed)
                .tensor();
  };
  ones_.assign(c.hidden_size, 1.0f);
  norm_ = {.name = "norm", .type = GGML_TYPE_F32, .shape = {c.hidden_size, 1, 1, 1}};
  norm_.data = std::as_bytes(std::span(ones_));

  constexpr float kLogitSpread = 2.5f;
  const float embedding_scale =
      c.tied_head ? kLogitSpread : std::sqrt(static_cast<float>(c.hidden_size));
  ModelTensors tensors;
  tensors.token_embedding =
      matrix("embedding", c.vocabulary_size, c.hidden_size, embedding_scale, type);
  tensors.output_norm = &norm_;
  tensors.head = c.tied_head ? tensors.token_embedding
                             : matrix("head", c.vocabulary_size, c.hidden_size, kLogitSpread, type);
  LayerTensors layer;
  const LayerParts<PartSpec, PartSpec> specs = layer_specs(c);
  for_each_part(layer, specs, [&](const Tensor*& tensor, const PartSpec& spec) {
    if (spec.inputs > 0) {
      const bool is_router = &spec == &specs.router;  // files keep it as it is
      tensor = matrix(spec.name, spec.outputs, spec.inputs, 1, is_router ? GGML_TYPE_F32 : type);
    } else if (spec.outputs > 0) {
      tensor = &norm_;
    }
  });
  tensors.layers.assign(c.layers, layer);
  model_ = std::make_unique<Model>(std::move(c), std::move(tensors));
}

SyntheticFile::SyntheticFile(const SyntheticModel& synthetic) {
  const Model& model = synthetic.model();
  const GgufHeader header(model, synthetic.rope_base());
  std::error_code no_folder;
  const std::filesystem::path folder = std::filesystem::temp_directory_path(no_folder);
  if (no_folder) throw Error("TMPDIR names no folder for temporary files");
  const auto bytes = static_cast<double>(header.file_bytes());
  const auto available = static_cast<double>(std::filesystem::space(folder).available);
  if (bytes > available) {
    throw Error(
        fmt::format("{} takes {:.1f} GB in {}, where {:.1f} GB are free; TMPDIR can name "
                    "another folder",
                    model.config().name, bytes / 1e9, folder.string(), available / 1e9));
  }

  std::string name = (folder / "firp-XXXXXX").string();
  const int descriptor = mkstemp(name.data());
  if (descriptor >= 0) unlink(name.c_str());
  file_.reset(descriptor >= 0 ? fdopen(descriptor, "wb") : nullptr);
  const GgmlErrors errors;
  // Written back now, or the system would do it while others measure.
  if (file_ == nullptr || !header.write(file_.get()) || std::fflush(file_.get()) != 0 ||
      fsync(descriptor) != 0) {
    throw Error(fmt::format("cannot write {} to {}: {}; TMPDIR can name another folder",
                            model.config().name, folder.string(), std::strerror(errno)));
  }
}

std::filesystem::path SyntheticFile::path() const {
  return fmt::format("/proc/self/fd/{}", fileno(file_.get()));
}

}  // namespace firp
