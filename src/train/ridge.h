#pragma once

#include <torch/torch.h>

#include "train/maps.h"

namespace firp {

/// Ridge regression of h_{i+j}^t on h_i^t for j = 1 .. K, in closed form: the normal equations are
/// summed text by text, so the hidden states need not be kept.
class RidgeRegression {
 public:
  /// The standardisation comes from `sample` [N, d], hidden states of some texts.
  RidgeRegression(int layer, int steps, const torch::Tensor& sample);

  /// Adds all anchors i of one text that have a target for every step; hidden [n, d] are the states
  /// of consecutive positions.
  void add(const torch::Tensor& hidden);
  long long anchors() const { return anchors_; }

  Maps solve() const;

 private:
  int layer_, steps_;
  torch::Tensor mean_, deviation_;
  long long anchors_ = 0;
  torch::Tensor
      inputs_;  ///< [d + 1, d + 1] F64: sums of z z^T, where z is the standardised h and a 1
  torch::Tensor targets_;  ///< [K, d + 1, d] F64: sums of z y^T
};

}  // namespace firp
