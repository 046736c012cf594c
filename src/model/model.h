#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/gguf_file.h"
#include "model/layer_parts.h"
#include "model/model_config.h"

namespace firp {

/// Tensors of one layer; nullptr where the architecture has none.
using LayerTensors = LayerParts<const Tensor*, const Tensor*>;

/// Where a file holds a part of a layer: the outputs first_output .. first_output + outputs - 1 of
/// the tensor `name`, which has `file_outputs` of them.
struct PartSpec {
  std::string_view name;  ///< after "blk.N."
  int outputs = 0;        ///< rows of a matrix, elements of a vector; 0: there is no such part
  int inputs = 0;         ///< columns of a matrix; 0: a vector
  int first_output = 0, file_outputs = 0;
  int experts = 1;  ///< whose outputs they are, as many of each: the tensor's third extent
};
/// The one list of a layer's tensors: their names and shapes.
LayerParts<PartSpec, PartSpec> layer_specs(const ModelConfig& config);

/// All tensors of a model; one tensor may serve in several places.
struct ModelTensors {
  const Tensor* token_embedding;  ///< [vocabulary x d]
  const Tensor* output_norm;      ///< [d]
  const Tensor* head;             ///< [vocabulary x d]; the embedding when tied
  std::vector<LayerTensors> layers;
};

/// What heads were made for: architecture, sizes and a hash of all tensors (names, types, shapes,
/// bytes).
struct ModelIdentity {
  std::string architecture;
  int layers = 0;
  int hidden_size = 0;
  int vocabulary_size = 0;
  std::string tensor_hash;  ///< 16 hexadecimal digits

  bool operator==(const ModelIdentity&) const = default;
  /// Whether heads of one fit the other: the same model, another quantisation, or a fine-tune.
  bool same_shapes(const ModelIdentity& other) const {
    return architecture == other.architecture && layers == other.layers &&
           hidden_size == other.hidden_size && vocabulary_size == other.vocabulary_size;
  }
};

/// Of a file of any architecture. Reads all tensor bytes once (at memory speed). Of a file of
/// kRememberedBytes or more, which may have to come from a disk, the hash is kept in the cache
/// directory until the file changes.
ModelIdentity identify(const GgufFile& file);
inline constexpr std::size_t kRememberedBytes = std::size_t{256} << 20;
/// The same without the hash, which costs nothing.
ModelIdentity sizes_of(const GgufFile& file);

/// A model: its configuration and where its tensors lie. Checks that every tensor is there with its
/// shape and a type that we can pack.
class Model {
 public:
  explicit Model(std::filesystem::path path);
  explicit Model(std::shared_ptr<const GgufFile> file);
  /// A model without a file. The tensors must outlive it.
  Model(ModelConfig config, ModelTensors tensors);
  Model(Model&&) = default;  // a copy would point to the pieces of the other

  bool has_file() const { return file_ != nullptr; }
  const GgufFile& file() const { return *file_; }  ///< only of a model that has one
  const ModelConfig& config() const { return config_; }
  const Tensor& token_embedding() const { return *tensors_.token_embedding; }
  const Tensor& output_norm() const { return *tensors_.output_norm; }
  const Tensor& head() const { return *tensors_.head; }
  const std::vector<LayerTensors>& layers() const { return tensors_.layers; }

  /// Without a file there is no hash: "".
  ModelIdentity identity() const;

 private:
  std::shared_ptr<const GgufFile> file_;
  ModelConfig config_;
  ModelTensors tensors_;
  std::deque<Tensor> pieces_;  ///< of tensors that hold several parts
};

}  // namespace firp
