#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <span>
#include <vector>

#include "train/maps.h"
#include "train/teacher.h"
#include "train/upper_layers.h"

namespace firp {

inline constexpr int kSequencesAnUpdate = 8;
inline constexpr int kAnchorsASequence = 12;
/// The log-sum-exp of the loss runs over so many tokens: those with most of the teacher's
/// mass, 99.9 % of it on a vocabulary of 49K.
inline constexpr std::int64_t kLossTokens = 16384;

/// Pseudo rows of one update.
struct AnchorBatch {
  std::vector<int> texts;                 ///< kSequencesAnUpdate indices
  std::vector<std::vector<int>> anchors;  ///< kAnchorsASequence positions in each
};

/// The rows of update `update`: a function of the texts, the seed and the number, so that a run
/// that is continued sees what an unbroken one would have seen. Every epoch visits each text once,
/// texts of like length together.
AnchorBatch anchor_batch(std::span<const TeacherText> texts, std::uint64_t seed, int update);

/// Learns the maps by KL from the model's own distribution at position i + j to that of row
/// p_{i,j}, for all steps together, with AdamW. A sequential head learns beside them, by the same
/// divergence of the row's corrected distribution, with the text's own token before it. The base
/// model is frozen.
class Distillation {
 public:
  /// Optimiser state; with the maps, all that an update depends on.
  struct State {
    Maps maps;
    std::vector<torch::Tensor> means, squares;  ///< Adam's moments of maps.parameters()
    int updates = 0;                            ///< done
  };
  static State initial_state(Maps maps);

  /// `upper`'s first layer is the maps'. Both outlive the object.
  Distillation(const UpperLayers& upper, std::span<const TeacherText> texts, State state,
               float learning_rate, std::uint64_t seed);

  /// One step of the optimiser; the learning rate decays to the end of `planned_updates`. Gives the
  /// mean KL of a row, in nats (with a sequential head: of its corrected distribution).
  double update(int planned_updates);

  const State& state() const { return state_; }
  static constexpr int kWarmUpUpdates = 30;  ///< the learning rate rises linearly over them

 private:
  const UpperLayers& upper_;
  std::span<const TeacherText> texts_;
  State state_;
  float learning_rate_;
  std::uint64_t seed_;
  torch::Tensor head_;  ///< rows of the head for the tokens that the teacher uses most
  std::vector<torch::Tensor> targets_;  ///< per text [n, 64] int64: its top tokens as rows of head_
  std::vector<torch::Tensor> probabilities_;  ///< per text [n, 64], 0 for tokens not in head_
};

/// Mean over the rows of KL(teacher || row) with its gradient. Exposed for its test.
///   states         [R, d] after the final norm, head [S, d]
///   targets        [R, 64] int64 rows of `head`; probabilities [R, 64], each row's sum 1
///   weights        [R]: each row's share of the result
torch::Tensor head_loss(const torch::Tensor& states, const torch::Tensor& head,
                        const torch::Tensor& targets, const torch::Tensor& probabilities,
                        const torch::Tensor& weights);

}  // namespace firp
