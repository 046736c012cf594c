#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "model/gguf_file.h"
#include "model/model_config.h"

namespace firp {

/// Tensors of one layer; nullptr where the architecture has none.
struct LayerTensors {
  const Tensor* attention_norm;
  const Tensor* query;   ///< [query_size x d]
  const Tensor* key;     ///< [kv_size x d]
  const Tensor* value;   ///< [kv_size x d]
  const Tensor* output;  ///< [d x query_size]
  const Tensor* query_bias;
  const Tensor* key_bias;
  const Tensor* value_bias;
  const Tensor* query_norm;  ///< [head_size]
  const Tensor* key_norm;
  const Tensor* feed_forward_norm;
  const Tensor* gate;  ///< [feed_forward_size x d]
  const Tensor* up;    ///< [feed_forward_size x d]
  const Tensor* down;  ///< [d x feed_forward_size]
};

/// Says whether heads belong to a model: architecture, sizes and a hash of all tensors (names,
/// types, shapes, bytes).
struct ModelIdentity {
  std::string architecture;
  int layers = 0;
  int hidden_size = 0;
  int vocabulary_size = 0;
  std::string tensor_hash;  ///< 16 hexadecimal digits

  bool operator==(const ModelIdentity&) const = default;
};

/// A model file: its configuration and where its tensors lie. Checks that every tensor is there
/// with its shape and a type that we can pack.
class Model {
 public:
  explicit Model(std::filesystem::path path);

  const GgufFile& file() const { return file_; }
  const ModelConfig& config() const { return config_; }
  const Tensor& token_embedding() const { return *token_embedding_; }  ///< [vocabulary x d]
  const Tensor& output_norm() const { return *output_norm_; }
  const Tensor& head() const { return *head_; }  ///< [vocabulary x d]; the embedding when tied
  const std::vector<LayerTensors>& layers() const { return layers_; }

  /// Reads all tensor bytes once (at memory speed).
  ModelIdentity identity() const;

 private:
  GgufFile file_;
  ModelConfig config_;
  const Tensor* token_embedding_;
  const Tensor* output_norm_;
  const Tensor* head_;
  std::vector<LayerTensors> layers_;
};

}  // namespace firp
