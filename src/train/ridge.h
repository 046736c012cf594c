#pragma once

#include <torch/torch.h>

#include <optional>

#include "train/maps.h"

namespace firp {

/// Ridge regression of h_{i+j}^t for j = 1 .. K on h_i^t and, with a token input, the embedding of
/// the token at i + 1, in closed form: the normal equations are summed text by text, so the hidden
/// states need not be kept.
class RidgeRegression {
 public:
  /// The standardisation comes from `sample` [N, d], hidden states of some texts. `token_scale`
  /// brings embeddings to about 1; empty: no token input.
  RidgeRegression(int layer, int steps, const torch::Tensor& sample,
                  std::optional<double> token_scale);

  /// Adds all anchors i of one text that have a target for every step; hidden [n, d] are the states
  /// of consecutive positions, `embeddings` [n, d] those of the tokens behind each (with a token
  /// input; else not looked at).
  void add(const torch::Tensor& hidden, const torch::Tensor& embeddings);
  long long anchors() const { return anchors_; }

  Maps solve() const;

 private:
  int layer_, steps_;
  torch::Tensor mean_, deviation_;
  long long anchors_ = 0;
  std::optional<double> token_scale_;
  /// [n, n] F64: sums of z z^T, where z is the standardised h, the scaled embedding if there is a
  /// token input, and a 1.
  torch::Tensor inputs_;
  torch::Tensor targets_;  ///< [K, n, d] F64: sums of z y^T
};

}  // namespace firp
