#include "model/model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <fstream>
#include <unordered_set>

#include "base/error.h"
#include "model/cache_directory.h"
#include "model/ggml_log.h"
#include "model/replaced_file.h"
#include "model/stream_hash.h"
#include "model/tensor_types.h"

namespace firp {
namespace {

/// `where`: the file, or what else the tensor is in.
void check_tensor(const Tensor& tensor, std::int64_t columns, std::int64_t rows, int experts,
                  std::string_view where) {
  const std::array<std::int64_t, 4> expected = {columns, rows / experts, experts, 1};
  if (tensor.shape != expected) {
    throw Error(fmt::format("{}: tensor {} has the shape [{}], expected [{}]", where, tensor.name,
                            fmt::join(tensor.shape, ", "), fmt::join(expected, ", ")));
  }
  if (!is_known(tensor.type)) {
    throw Unsupported(
        fmt::format("{}: tensor {} has the type {}, which is not supported (supported: {})", where,
                    tensor.name, ggml_type_name(tensor.type), tensor_type_names()));
  }
}

/// Finds a file's tensors and checks them; remembers which were asked for.
class TensorFinder {
 public:
  explicit TensorFinder(const GgufFile& file) : file_(file) {}

  /// `rows`: of all experts.
  const Tensor* get(const std::string& name, std::int64_t columns, std::int64_t rows = 1,
                    int experts = 1) {
    const Tensor* tensor = &file_.get_tensor(name);
    check_tensor(*tensor, columns, rows, experts, file_.path().string());
    used_.insert(tensor);
    return tensor;
  }

  /// A tensor that nothing asked for is a part of the model that we would leave out.
  void refuse_unused() const {
    for (const Tensor& tensor : file_.tensors()) {
      // Those are in the configuration's frequencies.
      const bool is_rope_factor =
          tensor.name == "rope_freqs.weight" || tensor.name.starts_with("rope_factors_");
      if (!used_.contains(&tensor) && !is_rope_factor) {
        throw Unsupported(
            fmt::format("{}: tensor {} is not one that the forward pass knows: not supported",
                        file_.path().string(), one_line(tensor.name)));
      }
    }
  }

 private:
  const GgufFile& file_;
  std::unordered_set<const Tensor*> used_;
};

std::int64_t columns_of(const PartSpec& spec, int outputs) {
  return spec.inputs > 0 ? spec.inputs : outputs;
}
std::int64_t rows_of(const PartSpec& spec, int outputs) { return spec.inputs > 0 ? outputs : 1; }

Tensor piece_of(const Tensor& whole, const PartSpec& spec) {
  Tensor piece = whole;
  piece.shape = {columns_of(spec, spec.outputs), rows_of(spec, spec.outputs), 1, 1};
  // A vector's elements are F32 or F16: as rows of one column they are whole blocks.
  const std::size_t bytes = ggml_row_size(whole.type, spec.inputs > 0 ? spec.inputs : 1);
  piece.data = whole.data.subspan(spec.first_output * bytes, spec.outputs * bytes);
  return piece;
}

std::string tensor_hash(const GgufFile& file) {
  StreamHash hash;
  for (const Tensor& tensor : file.tensors()) {
    hash.add(tensor.name);
    hash.add_word(static_cast<std::uint64_t>(tensor.type));
    for (const std::int64_t extent : tensor.shape) {
      hash.add_word(static_cast<std::uint64_t>(extent));
    }
    hash.add(tensor.data);
    file.release(tensor.data);
  }
  return fmt::format("{:016x}", hash.value());
}

/// "" where the file at `path` does not hold the hash of a model with this stamp.
std::string remembered_hash(const std::filesystem::path& path, const std::string& stamp) {
  std::ifstream file(path);
  std::string line, hash;
  const bool good = std::getline(file, line) && line == stamp && std::getline(file, hash);
  return good && hash.size() == 16 ? hash : "";
}

void remember_hash(const std::filesystem::path& path, const std::string& stamp,
                   const std::string& hash) {
  try {
    ReplacedFile file(path);
    file.write(fmt::format("{}\n{}\n", stamp, hash));
    file.replace();
  } catch (const Error&) {  // a folder that cannot be written: hashed again next time
  }
}

}  // namespace

ModelIdentity sizes_of(const GgufFile& file) {
  const std::string architecture = file.get_string("general.architecture");
  return {.architecture = architecture,
          .layers = static_cast<int>(file.get_int(architecture + ".block_count")),
          .hidden_size = static_cast<int>(file.get_int(architecture + ".embedding_length")),
          .vocabulary_size = static_cast<int>(file.get_tensor("token_embd.weight").rows()),
          .tensor_hash = ""};
}

ModelIdentity identify(const GgufFile& file) {
  ModelIdentity identity = sizes_of(file);
  const auto kept = file.bytes() >= kRememberedBytes ? cache_file("hashes", file) : std::nullopt;
  if (kept) identity.tensor_hash = remembered_hash(*kept, file.stamp());
  if (!identity.tensor_hash.empty()) return identity;
  identity.tensor_hash = tensor_hash(file);
  if (kept) remember_hash(*kept, file.stamp(), identity.tensor_hash);
  return identity;
}

Model::Model(std::filesystem::path path)
    : Model(std::make_shared<const GgufFile>(std::move(path))) {}

Model::Model(std::shared_ptr<const GgufFile> file)
    : file_(std::move(file)), config_(read_model_config(*file_)) {
  TensorFinder tensors(*file_);
  const ModelConfig& c = config_;
  tensors_.token_embedding = tensors.get("token_embd.weight", c.hidden_size, c.vocabulary_size);
  tensors_.output_norm = tensors.get("output_norm.weight", c.hidden_size);
  tensors_.head = c.tied_head ? tensors_.token_embedding
                              : tensors.get("output.weight", c.hidden_size, c.vocabulary_size);

  const LayerParts<PartSpec, PartSpec> specs = layer_specs(c);
  const auto find = [&](int layer, const PartSpec& spec) -> const Tensor* {
    if (spec.outputs == 0) return nullptr;
    const Tensor* const tensor =
        tensors.get(fmt::format("blk.{}.{}", layer, spec.name), columns_of(spec, spec.file_outputs),
                    rows_of(spec, spec.file_outputs), spec.experts);
    if (spec.outputs == spec.file_outputs && spec.experts == 1) return tensor;
    return &pieces_.emplace_back(piece_of(*tensor, spec));
  };
  for (int i = 0; i < c.layers; ++i) {
    for_each_part(tensors_.layers.emplace_back(), specs,
                  [&](const Tensor*& tensor, const PartSpec& spec) { tensor = find(i, spec); });
  }
  tensors.refuse_unused();
}

Model::Model(ModelConfig config, ModelTensors tensors)
    : config_(std::move(config)), tensors_(std::move(tensors)) {
  const ModelConfig& c = config_;
  const auto check = [&](const Tensor* tensor, std::int64_t columns, std::int64_t rows = 1) {
    if (tensor == nullptr) throw Error(fmt::format("{}: a tensor is missing", c.name));
    check_tensor(*tensor, columns, rows, /*experts=*/1, c.name);
  };
  check(tensors_.token_embedding, c.hidden_size, c.vocabulary_size);
  check(tensors_.output_norm, c.hidden_size);
  check(tensors_.head, c.hidden_size, c.vocabulary_size);
  if (tensors_.layers.size() != static_cast<std::size_t>(c.layers)) {
    throw Error(
        fmt::format("{}: {} layers instead of {}", c.name, tensors_.layers.size(), c.layers));
  }
  const LayerParts<PartSpec, PartSpec> specs = layer_specs(c);
  for (const LayerTensors& layer : tensors_.layers) {
    for_each_part(layer, specs, [&](const Tensor* tensor, const PartSpec& spec) {
      if (spec.outputs == 0) return;
      check(tensor, columns_of(spec, spec.outputs), rows_of(spec, spec.outputs));
    });
  }
}

LayerParts<PartSpec, PartSpec> layer_specs(const ModelConfig& c) {
  const int d = c.hidden_size, inner = c.feed_forward_size;
  const int q = c.query_size(), kv = c.kv_size();
  const auto matrix = [](std::string_view name, int outputs, int inputs) {
    return PartSpec{name, outputs, inputs, 0, outputs};
  };
  const auto vector = [](bool there, std::string_view name, int size) {
    return there ? PartSpec{name, size, 0, 0, size} : PartSpec{};
  };
  const auto expert = [&c, &matrix](std::string_view of_mixture, std::string_view alone,
                                    int outputs, int inputs) {
    if (c.experts == 0) return matrix(alone, outputs, inputs);
    PartSpec spec = matrix(of_mixture, c.experts * outputs, inputs);
    spec.experts = c.experts;
    return spec;
  };
  const bool norms = c.head_norms != HeadNorms::kNone, wide = c.head_norms == HeadNorms::kAll;
  LayerParts<PartSpec, PartSpec> specs = {
      .attention_norm = vector(c.norms_before, "attn_norm.weight", d),
      .query = matrix("attn_q.weight", q, d),
      .key = matrix("attn_k.weight", kv, d),
      .value = matrix("attn_v.weight", kv, d),
      .output = matrix("attn_output.weight", d, q),
      .query_bias = vector(c.qkv_bias, "attn_q.bias", q),
      .key_bias = vector(c.qkv_bias, "attn_k.bias", kv),
      .value_bias = vector(c.qkv_bias, "attn_v.bias", kv),
      .query_norm = vector(norms, "attn_q_norm.weight", wide ? q : c.head_size),
      .key_norm = vector(norms, "attn_k_norm.weight", wide ? kv : c.head_size),
      .attention_post_norm = vector(c.norms_after, "post_attention_norm.weight", d),
      .feed_forward_norm = vector(c.norms_before, "ffn_norm.weight", d),
      .router = c.experts > 0 ? matrix("ffn_gate_inp.weight", c.experts, d) : PartSpec{},
      .gate = expert("ffn_gate_exps.weight", "ffn_gate.weight", inner, d),
      .up = expert("ffn_up_exps.weight", "ffn_up.weight", inner, d),
      .down = expert("ffn_down_exps.weight", "ffn_down.weight", d, inner),
      .feed_forward_post_norm = vector(c.norms_after, "post_ffw_norm.weight", d),
  };
  // Parts that one tensor holds, one after the other.
  const auto fuse = [](std::string_view name, std::initializer_list<PartSpec*> parts) {
    int first = 0;
    for (PartSpec* const part : parts) {
      part->name = name;
      part->first_output = first;
      first += part->outputs;
    }
    for (PartSpec* const part : parts) part->file_outputs = first;
  };
  if (c.fused_qkv) {
    fuse("attn_qkv.weight", {&specs.query, &specs.key, &specs.value});
    if (c.qkv_bias) fuse("attn_qkv.bias", {&specs.query_bias, &specs.key_bias, &specs.value_bias});
  }
  if (c.fused_gate_up) fuse("ffn_up.weight", {&specs.gate, &specs.up});
  return specs;
}

ModelIdentity Model::identity() const {
  if (has_file()) return identify(*file_);
  return {.architecture = config_.architecture,
          .layers = config_.layers,
          .hidden_size = config_.hidden_size,
          .vocabulary_size = config_.vocabulary_size,
          .tensor_hash = ""};
}

}  // namespace firp
