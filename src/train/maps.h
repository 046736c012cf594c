#pragma once

#include <torch/torch.h>

#include "model/heads.h"

namespace firp {

/// Draft maps while they are trained. Input and output are standardised per dimension, because the
/// residual stream's dimensions differ by a factor of fifty:
///   p_{i,j} = mean + deviation * (weight_j ((h_i - mean) / deviation) + bias_j)
struct Maps {
  int layer = 0;
  torch::Tensor mean, deviation;  ///< [d]
  torch::Tensor weight;           ///< [K, d, d], weight[j][output][input]
  torch::Tensor bias;             ///< [K, d]

  int steps() const { return static_cast<int>(weight.size(0)); }
  /// [N, d] hidden states to [N, K, d] pseudo rows; F32, with gradients to weight and bias.
  torch::Tensor rows(const torch::Tensor& hidden) const;
  Maps to(torch::Device device) const;
};

/// The maps as a heads file holds them: standardisation folded in, weights rounded to F16.
Heads to_heads(const Maps& maps, const ModelIdentity& base);

/// The maps that a heads file holds (mean 0, deviation 1). All of its steps share one layer.
Maps from_heads(const Heads& heads);

}  // namespace firp
