#pragma once

#include <vector>

#include "engine/thread_pool.h"
#include "kernels/packed_matrix.h"
#include "model/model.h"

namespace firp {

/// A model's weights as the forward pass reads them. Vectors are empty where the architecture has
/// none.
struct LayerWeights {
  std::vector<float> attention_norm;
  PackedMatrix query, key, value, output;
  std::vector<float> query_bias, key_bias, value_bias;
  std::vector<float> query_norm, key_norm;
  std::vector<float> feed_forward_norm;
  PackedMatrix gate, up, down;
};

struct Weights {
  std::vector<LayerWeights> layers;
  std::vector<float> output_norm;
  PackedMatrix head;

  /// Packs all matrices, one behind the other in the order in which a pass reads them. Each thread
  /// of the pool packs about what it will read in a pass, so that it lies in memory near its core.
  Weights(const Model& model, ThreadPool& pool);

  std::size_t bytes() const { return memory_.size(); }  ///< of all matrices

 private:
  AlignedBytes memory_;
};

}  // namespace firp
