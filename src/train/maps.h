#pragma once

#include <torch/torch.h>

#include <optional>
#include <vector>

#include "model/heads.h"

namespace firp {

/// The sequential heads of all steps while they are trained (SequentialHead of model/heads.h).
/// Their inputs are scaled to about 1, so that one learning rate fits every model:
///   c = output_j SiLU(state_j (state_scale n) + token_j (token_scale e) + bias_j)
struct SequentialHeads {
  double state_scale = 1, token_scale = 1;
  torch::Tensor state, token;  ///< [K, r, d]
  torch::Tensor bias;          ///< [K, r]
  torch::Tensor output;        ///< [K, d, r]

  /// What a fresh head is: random inputs, an output of zero, so that it corrects nothing yet.
  static SequentialHeads initial(int steps, int rank, std::int64_t d, double state_scale,
                                 double token_scale, std::uint64_t seed);
  int rank() const { return static_cast<int>(bias.size(1)); }
  /// Final states n [N, K, d] of the steps' rows and embeddings e [N, K, d] of the tokens before
  /// them to corrections c [N, K, d]; F32, with gradients.
  torch::Tensor correction(const torch::Tensor& states, const torch::Tensor& embeddings) const;
  /// The same in two parts, for many tokens behind one row. The states' part, which is the row's
  /// alone: [N, K, d] to [N, K, r]; then, for one step (from 0), that part [1, r] and the tokens'
  /// embeddings [M, d] to corrections [M, d].
  torch::Tensor inner_of_states(const torch::Tensor& states) const;
  torch::Tensor correction_behind(int step, const torch::Tensor& inner,
                                  const torch::Tensor& embeddings) const;
};

/// The adapters of the upper layers while they are trained (Adapter of model/heads.h), one a layer
/// from the maps' on: h += up_l SiLU(down_l (h / rms(h))).
struct Adapters {
  torch::Tensor down;  ///< [layers, r, d]
  torch::Tensor up;    ///< [layers, d, r]

  /// Fresh ones change nothing: up is 0.
  static Adapters initial(int layers, int rank, std::int64_t d, std::uint64_t seed);
  /// Pseudo rows [R, d] before the layer `index` (0: the first), adapted; F32, with gradients.
  torch::Tensor adapt(const torch::Tensor& rows, int index) const;
};

/// What the token behind the anchor adds to each pseudo row (DraftMap::token of model/heads.h)
/// while it is trained: deviation * (weight_j (scale e)).
struct TokenInput {
  double scale = 1;      ///< brings embeddings to about 1
  torch::Tensor weight;  ///< [K, d, d], weight[j][output][input]
};

/// Draft maps while they are trained, or Medusa's heads:
///   p_{i,j} = n_i + SiLU(weight_j ((n_i - mean) / deviation) + bias_j), n_i the final state.
/// Input and output of maps are standardised per dimension, because the residual stream's
/// dimensions differ by a factor of fifty:
///   p_{i,j} = mean + deviation * (weight_j ((h_i - mean) / deviation) + bias_j)
struct Maps {
  int layer = 0;
  torch::Tensor mean, deviation;  ///< [d]
  torch::Tensor weight;           ///< [K, d, d], weight[j][output][input]
  torch::Tensor bias;             ///< [K, d]
  std::optional<TokenInput> token = {};
  std::optional<SequentialHeads> sequence = {};
  std::optional<Adapters> adapters = {};
  HeadsMethod method = HeadsMethod::kFirp;

  int steps() const { return static_cast<int>(weight.size(0)); }
  /// [N, d] hidden states of anchors (Medusa: final states), and embeddings [N, d] of the tokens
  /// behind them (read only by maps with a token input), to [N, K, d] pseudo rows; F32, with
  /// gradients to the weights.
  torch::Tensor rows(const torch::Tensor& hidden, const torch::Tensor& embeddings) const;
  /// What training changes.
  std::vector<torch::Tensor*> parameters();
  Maps to(torch::Device device) const;
};

/// The maps as a heads file holds them: standardisation and scales folded in, weights rounded to
/// F16. Without a draft vocabulary.
Heads to_heads(const Maps& maps, const ModelIdentity& base);

/// The maps that a heads file holds (mean 0, deviation 1, scales 1). All of its steps share one
/// layer.
Maps from_heads(const Heads& heads);

}  // namespace firp
