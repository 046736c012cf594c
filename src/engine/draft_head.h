#pragma once

#include <span>
#include <vector>

#include "engine/proposal.h"
#include "engine/thread_pool.h"
#include "kernels/kernels.h"
#include "model/heads.h"
#include "model/model.h"

namespace firp {

/// The sequential heads: they correct what a step's pseudo row proposes by the token that stands
/// before (docs/heads-format.md).
class DraftHead {
 public:
  /// `token_embedding` and `head` are the model's, [vocabulary x d]. All but `heads`, which has
  /// sequential heads, outlive it.
  DraftHead(const Tensor& token_embedding, const Tensor& head, const Heads& heads,
            const Kernels& kernels, ThreadPool& pool);

  /// What the heads make of the final states of an anchor's steps 1 .. states.size(), before a
  /// token is known: [steps x rank].
  std::vector<float> take_states(std::span<const std::span<const float>> states);

  /// The candidates of `row`, corrected for each of the tokens before. `inner`: of take_states().
  std::vector<std::vector<Candidate>> correct(int step, const BestTokens& row,
                                              std::span<const float> inner,
                                              std::span<const Token> previous);

 private:
  struct Sequential {
    PackedMatrix state, token, output;
    std::vector<float> bias;
  };

  /// This thread's share of w's outputs for all rows of x.
  void multiply(const PackedMatrix& w, const Activations& x, float* y, std::size_t stride,
                int thread) const;

  const Tensor& token_embedding_;
  const Tensor& head_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  std::vector<Sequential> sequential_;  ///< one a step
  AlignedBytes memory_;                 ///< of their matrices

  Activations state_input_, token_input_, inner_input_;
  std::vector<float> products_, corrections_, candidate_rows_, logits_;
};

}  // namespace firp
