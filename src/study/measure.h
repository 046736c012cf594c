#pragma once

#include <array>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "train/synthesis.h"

namespace firp {

inline constexpr int kTopCandidates = 5;

/// How often the model's own token was among the first 1 .. kTopCandidates candidates of a step.
struct StepAgreement {
  long long rows = 0;
  std::array<long long, kTopCandidates> hits = {};

  double top(int k) const {
    return rows == 0 ? 0 : static_cast<double>(hits[k - 1]) / static_cast<double>(rows);
  }
};
using Agreement = std::vector<StepAgreement>;  ///< of steps 1 .. K

enum class EarlierSteps { kSeen, kUnseen };

/// What pseudo rows alone say, over the whole vocabulary. The texts are greedy; each position
/// behind which an answer token is drafted is an anchor. `earlier`: whether p_{i,j} sees
/// p_{i,1..j-1}. The engine has heads.
Agreement row_agreement(Engine& engine, std::span<const Text> texts,
                        EarlierSteps earlier = EarlierSteps::kSeen);

/// What decoding drafts: the candidates of the draft vocabulary, ranked by the sequential head (if
/// there is one) behind the true token of the step before.
Agreement draft_agreement(Engine& engine, std::span<const Text> texts);

/// Early exit: the first `layer` layers, the final norm and the head draft `steps` tokens one after
/// another, behind the token that the model decodes from the anchor. Needs no heads.
Agreement early_exit_agreement(Engine& engine, std::span<const Text> texts, int layer, int steps);

/// Mean cosine of the residual streams of p_{i,j} and of the token at i + j, after each layer from
/// the one where the row enters.
struct Similarity {
  int first_layer = 0;
  /// [step - 1][layer - first_layer]. `centred`: after the layer's mean over all tokens was taken
  /// off, without which all states of a layer look alike.
  std::vector<std::vector<double>> centred, plain;
};
Similarity state_similarity(Engine& engine, std::span<const Text> texts);

}  // namespace firp
