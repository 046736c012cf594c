#pragma once

#include <span>
#include <vector>

#include "engine/forward.h"
#include "model/heads.h"

namespace firp {

/// What turns the final states of pseudo rows into candidates: the model's head over the draft
/// vocabulary, and the sequential heads, if there are any (docs/heads-format.md).
class DraftHead {
 public:
  /// All of them outlive it.
  DraftHead(const Model& model, const Weights& weights, const Heads& heads, const Kernels& kernels,
            ThreadPool& pool);

  /// Takes rows of the pass's last run, the pseudo rows of one anchor, steps 1 .. rows.size().
  void propose(ForwardPass& pass, std::span<const int> rows);

  /// Engine::drafts_behind.
  std::vector<std::vector<Candidate>> drafts_behind(int step, std::span<const Token> previous);

 private:
  const PackedMatrix& head() const { return vocabulary_.empty() ? model_head_ : own_head_; }

  struct Sequential {
    PackedMatrix state, token, output;
    std::vector<float> bias;
  };

  void take_states(ForwardPass& pass, std::span<const int> rows);
  /// This thread's share of w's outputs for all rows of x.
  void multiply(const PackedMatrix& w, const Activations& x, float* y, std::size_t stride,
                int thread) const;

  const Model& model_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  const PackedMatrix& model_head_;
  PackedMatrix own_head_;                 ///< its rows of the draft vocabulary
  std::vector<std::int32_t> vocabulary_;  ///< of the rows of the head; empty: all tokens
  std::vector<Sequential> sequential_;    ///< one a step, or none

  std::vector<BestTokens> best_;  ///< [proposed steps]; tokens of the whole vocabulary
  std::vector<float> inner_;      ///< [proposed steps x rank]: state n + bias
  Activations state_input_, token_input_, inner_input_;
  std::vector<float> products_, corrections_, candidate_rows_, logits_;
};

}  // namespace firp
