#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <vector>

#include "engine/thread_pool.h"
#include "kernels/packed_matrix.h"
#include "model/model.h"

namespace firp {

/// A layer's weights as the forward pass reads them. Vectors are empty where the architecture has
/// none.
using LayerWeights = LayerParts<PackedMatrix, std::vector<float>>;

/// Where `packed_cache` keeps a model's packed weights; nullopt where it cannot.
std::optional<std::filesystem::path> packed_weights_path(const Model& model);

struct Weights {
  std::vector<LayerWeights> layers;
  std::vector<float> output_norm;
  PackedMatrix head;

  /// Packs all matrices, one behind the other in the order in which a pass reads them. Each thread
  /// of the pool packs about what it will read in a pass, so that it lies in memory near its core.
  /// `packed_cache`: keeps them in the cache directory, as many bytes as they are, or takes them
  /// from there if the model's file is as it was.
  Weights(const Model& model, ThreadPool& pool, bool packed_cache = false);

  std::size_t bytes() const { return memory_.size(); }      ///< of all matrices
  std::size_t read_bytes(const ModelConfig& config) const;  ///< what a row reads of them

 private:
  AlignedBytes memory_;
};

/// Drafts are verified, so what makes them may be rough; and a drafting pass costs what it reads.
/// So weights of more than kMostRoughBits are rounded for it (docs/training.md has what that
/// loses).
inline constexpr double kMostRoughBits = 6;
inline constexpr ggml_type kRoughLayerType = GGML_TYPE_Q4_1;
inline constexpr ggml_type kRoughHeadType = GGML_TYPE_Q5_0;
inline constexpr ggml_type kRoughMapType = GGML_TYPE_Q4_1;  ///< draft maps: F16 in their files

/// The type that a matrix is rounded to: `rough`; its own, where that is small enough, or where its
/// rows do not divide into blocks of `rough`.
ggml_type rough_type(const Tensor& matrix, ggml_type rough);

/// How much of one of the layer's matrices a row reads: of a mixture's experts those that it uses.
template <typename Matrix, typename Vector>
double share_read(const ModelConfig& config, const LayerParts<Matrix, Vector>& layer,
                  const Matrix* matrix) {
  const bool is_of_experts = matrix == &layer.gate || matrix == &layer.up || matrix == &layer.down;
  return config.experts == 0 || !is_of_experts ? 1.0 : double(config.experts_used) / config.experts;
}

/// Of a layer's matrices, as the file has them or rounded for drafting, what a row reads.
std::size_t layer_bytes(const ModelConfig& config, const LayerTensors& layer, bool rough);

/// What drafting passes, of pseudo rows alone, read instead of the model's weights.
struct DraftWeights {
  std::vector<LayerWeights> layers;  ///< [layers], or none: the model's own
  PackedMatrix head;                 ///< [draft vocabulary, or all tokens x d]

  /// Layers from `first_layer` on (empty ones below), and the head's rows of `vocabulary` (empty:
  /// all). A copy of what is rounded, views of the rest in `weights`, which must outlive this.
  /// Where there is nothing to round, or `rough` is false, there are no layers. `packed_cache`: as
  /// with Weights, in a file of their own.
  DraftWeights(const Model& model, const Weights& weights, int first_layer,
               std::span<const std::int32_t> vocabulary, bool rough, ThreadPool& pool,
               bool packed_cache = false);

 private:
  AlignedBytes memory_;
};

}  // namespace firp
