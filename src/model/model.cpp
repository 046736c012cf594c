#include "model/model.h"

#include <fmt/format.h>

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
void check_tensor(const Tensor& tensor, std::int64_t columns, std::int64_t rows,
                  std::string_view where) {
  if (tensor.shape != std::array<std::int64_t, 4>{columns, rows, 1, 1}) {
    throw Error(fmt::format("{}: tensor {} has the shape [{}, {}, {}, {}], expected [{}, {}]",
                            where, tensor.name, tensor.shape[0], tensor.shape[1], tensor.shape[2],
                            tensor.shape[3], columns, rows));
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

  const Tensor* get(const std::string& name, std::int64_t columns, std::int64_t rows = 1) {
    const Tensor* tensor = &file_.get_tensor(name);
    check_tensor(*tensor, columns, rows, file_.path().string());
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

  for (int layer = 0; layer < c.layers; ++layer) {
    const auto name = [layer](std::string_view part) {
      return fmt::format("blk.{}.{}", layer, part);
    };
    const auto bias = [&](std::string_view part, int size) {
      return c.qkv_bias ? tensors.get(name(part), size) : nullptr;
    };
    const auto head_norm = [&](std::string_view part) {
      return c.qk_norm ? tensors.get(name(part), c.head_size) : nullptr;
    };
    tensors_.layers.push_back({
        .attention_norm = tensors.get(name("attn_norm.weight"), c.hidden_size),
        .query = tensors.get(name("attn_q.weight"), c.hidden_size, c.query_size()),
        .key = tensors.get(name("attn_k.weight"), c.hidden_size, c.kv_size()),
        .value = tensors.get(name("attn_v.weight"), c.hidden_size, c.kv_size()),
        .output = tensors.get(name("attn_output.weight"), c.query_size(), c.hidden_size),
        .query_bias = bias("attn_q.bias", c.query_size()),
        .key_bias = bias("attn_k.bias", c.kv_size()),
        .value_bias = bias("attn_v.bias", c.kv_size()),
        .query_norm = head_norm("attn_q_norm.weight"),
        .key_norm = head_norm("attn_k_norm.weight"),
        .feed_forward_norm = tensors.get(name("ffn_norm.weight"), c.hidden_size),
        .gate = tensors.get(name("ffn_gate.weight"), c.hidden_size, c.feed_forward_size),
        .up = tensors.get(name("ffn_up.weight"), c.hidden_size, c.feed_forward_size),
        .down = tensors.get(name("ffn_down.weight"), c.feed_forward_size, c.hidden_size),
    });
  }
  tensors.refuse_unused();
}

Model::Model(ModelConfig config, ModelTensors tensors)
    : config_(std::move(config)), tensors_(std::move(tensors)) {
  const ModelConfig& c = config_;
  const auto check = [&](const Tensor* tensor, std::int64_t columns, std::int64_t rows = 1) {
    if (tensor == nullptr) throw Error(fmt::format("{}: a tensor is missing", c.name));
    check_tensor(*tensor, columns, rows, c.name);
  };
  check(tensors_.token_embedding, c.hidden_size, c.vocabulary_size);
  check(tensors_.output_norm, c.hidden_size);
  check(tensors_.head, c.hidden_size, c.vocabulary_size);
  if (tensors_.layers.size() != static_cast<std::size_t>(c.layers)) {
    throw Error(
        fmt::format("{}: {} layers instead of {}", c.name, tensors_.layers.size(), c.layers));
  }
  for (const LayerTensors& layer : tensors_.layers) {
    check(layer.attention_norm, c.hidden_size);
    check(layer.query, c.hidden_size, c.query_size());
    check(layer.key, c.hidden_size, c.kv_size());
    check(layer.value, c.hidden_size, c.kv_size());
    check(layer.output, c.query_size(), c.hidden_size);
    if (c.qkv_bias) {
      check(layer.query_bias, c.query_size());
      check(layer.key_bias, c.kv_size());
      check(layer.value_bias, c.kv_size());
    }
    if (c.qk_norm) {
      check(layer.query_norm, c.head_size);
      check(layer.key_norm, c.head_size);
    }
    check(layer.feed_forward_norm, c.hidden_size);
    check(layer.gate, c.hidden_size, c.feed_forward_size);
    check(layer.up, c.hidden_size, c.feed_forward_size);
    check(layer.down, c.feed_forward_size, c.hidden_size);
  }
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
