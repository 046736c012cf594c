#pragma once

#include <torch/torch.h>

#include <optional>
#include <vector>

#include "model/model.h"
#include "train/maps.h"

namespace firp {

/// The frozen layers first_layer .. L-1 of a model, its final norm and its head, in LibTorch: the
/// path of a pseudo row, with gradients to the row and none to the weights.
///
/// Weights are the file's, dequantised; `type` (F32 or BF16) is that of the matrix products. The
/// residual stream, norms and RoPE are F32 in both.
class UpperLayers {
 public:
  UpperLayers(const Model& model, int first_layer, torch::Device device, torch::ScalarType type);

  int first_layer() const { return first_layer_; }
  int layers() const { return static_cast<int>(layers_.size()); }  ///< of this object
  torch::Device device() const { return device_; }
  torch::ScalarType type() const { return type_; }

  /// Keys (after RoPE) and values of the real rows at positions 0 .. T-1 in layer `layer`, from
  /// their residual stream before it, h^layer [T, d]. F16, as in the engine's cache, or BF16: [2,
  /// kv_heads, T, head_size].
  torch::Tensor keys_values(int layer, const torch::Tensor& hidden) const;

  /// Runs pseudo rows from layer `layer` on, to the state after the final norm [B, A, K, d].
  ///   rows     [B, A, K, d] F32: p_{i,j}, j = 1 .. K, for A anchors i in each of B sequences
  ///   anchors  [B, A] int64: the positions i
  ///   context  [layers(), 2, B, kv_heads, T, head_size]: keys_values() of the sequences
  /// Row (b, a, j) stands at position i + j and sees the real positions 0 .. i of its sequence and
  /// its own chain p_{i,1} .. p_{i,j}. `adapters` are those of the layers from `layer` on.
  torch::Tensor forward(int layer, const torch::Tensor& rows, const torch::Tensor& anchors,
                        const torch::Tensor& context,
                        const std::optional<Adapters>& adapters = {}) const;

  /// Final states [B, A, K, d] of what `maps` make of hidden states [B A, d] and of the embeddings
  /// behind them: through the layers from the maps' on, or, for Medusa's, none.
  torch::Tensor final_states(const Maps& maps, const torch::Tensor& hidden,
                             const torch::Tensor& embeddings, const torch::Tensor& anchors,
                             const torch::Tensor& context) const;

  /// The final norm of residual streams [..., d]: F32.
  torch::Tensor normed(const torch::Tensor& hidden) const;

  /// [vocabulary, d], with the model's scale of logits. A cap of logits is not applied here: it
  /// changes how sure drafts are, not their order.
  const torch::Tensor& head() const { return head_; }
  torch::Tensor embeddings(const torch::Tensor& tokens) const {  ///< int64 [N] to [N, d]
    return embedding_.index_select(0, tokens.to(device_));
  }
  double embedding_scale() const { return embedding_scale_; }        ///< 1 / rms of all embeddings
  const torch::Tensor& output_norm() const { return output_norm_; }  ///< its weights [d]

 private:
  /// Vectors that the architecture lacks are undefined.
  struct Layer {
    torch::Tensor attention_norm, attention_post_norm;
    torch::Tensor query_key_value, query_key_value_bias;  ///< in this order, stacked
    torch::Tensor query_norm, key_norm;
    torch::Tensor output;
    torch::Tensor feed_forward_norm, feed_forward_post_norm;
    torch::Tensor router;         ///< [experts x d], in F32
    torch::Tensor gate_up, down;  ///< of each expert; without a mixture there is one
  };
  /// Angles of some positions by each of the model's rotations: [R, 1, dimensions / 2] each.
  struct Angles {
    torch::Tensor cosine, sine;
  };

  std::vector<Angles> angles_at(const torch::Tensor& positions) const;
  /// The norm of a sublayer's input, or of its output; without weights x itself.
  torch::Tensor norm(const torch::Tensor& x, const torch::Tensor& weight) const;
  torch::Tensor feed_forward(const Layer& weights, const torch::Tensor& x) const;
  /// Heads [R, heads, head_size] from projections [R, heads * head_size], with their norm.
  torch::Tensor heads_of(const torch::Tensor& projected, const torch::Tensor& weight,
                         torch::ScalarType type) const;

  const ModelConfig config_;
  int first_layer_;
  torch::Device device_;
  torch::ScalarType type_;
  std::vector<torch::Tensor> frequencies_;  ///< as ModelConfig::ropes: [dimensions / 2]
  std::vector<Layer> layers_;
  torch::Tensor output_norm_, head_, embedding_;
  double embedding_scale_ = 1;
};

/// CUDA if there is any, else the CPU.
torch::Device fast_device();

/// BF16 where the device multiplies it faster than F32 (CUDA; CPUs with AVX512-BF16 or AMX), else
/// F32.
torch::ScalarType fast_type(torch::Device device);

}  // namespace firp
