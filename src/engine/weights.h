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

  /// Packs all matrices, several at a time.
  Weights(const Model& model, ThreadPool& pool);

  std::size_t bytes() const;  ///< of all matrices
};

}  // namespace firp
