#pragma once

#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/thread_pool.h"
#include "kernels/kernels.h"
#include "model/heads.h"

namespace firp {

/// What turns the final states of pseudo rows and their best tokens into candidates: the sequential
/// heads, if there are any (docs/heads-format.md).
class DraftHead {
 public:
  /// `token_embedding` and `head` are the model's, [vocabulary x d]. All but `heads` outlive it.
  DraftHead(const Tensor& token_embedding, const Tensor& head, const Heads& heads,
            const Kernels& kernels, ThreadPool& pool);

  bool reads_states() const { return !sequential_.empty(); }

  /// Takes the pseudo rows of one anchor, steps 1 .. best.size(): the kRankedCandidates best tokens
  /// of each that may be drafted, with their log_sum, and, if reads_states(), their final states.
  void propose(std::span<const BestTokens> best, std::span<const std::span<const float>> states);

  /// Engine::drafts_behind.
  std::vector<std::vector<Candidate>> drafts_behind(int step, std::span<const Token> previous);

 private:
  struct Sequential {
    PackedMatrix state, token, output;
    std::vector<float> bias;
  };

  void take_states(std::span<const std::span<const float>> states);
  /// This thread's share of w's outputs for all rows of x.
  void multiply(const PackedMatrix& w, const Activations& x, float* y, std::size_t stride,
                int thread) const;

  const Tensor& token_embedding_;
  const Tensor& head_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<Sequential> sequential_;  ///< one a step, or none

  std::vector<BestTokens> best_;  ///< [proposed steps]
  std::vector<float> inner_;      ///< [proposed steps x rank]: state n + bias
  Activations state_input_, token_input_, inner_input_;
  std::vector<float> products_, corrections_, candidate_rows_, logits_;
};

}  // namespace firp
