#pragma once

#include <span>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/thread_pool.h"
#include "engine/weights.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "model/vocabulary.h"

namespace firp {

/// W_j and b_j, packed.
struct PackedMap {
  int layer = 0;  ///< t_j
  PackedMatrix weight;
  std::vector<float> bias;
};

/// A row of the running pass. Token rows come first, then pseudo rows by the layer where they enter
/// and by step, so that the rows that exist in a layer are always the first ones. A row's index is
/// its scratch slot.
struct PassRow {
  int sequence = 0;
  int position = 0;
  Token token = -1;
  int step = 0;                   ///< 0: a token row
  int entry_layer = 0;            ///< layers it does not run through
  int source_row = -1;            ///< of a pseudo row: where h_i^{t_j} is taken from,
  const float* source = nullptr;  ///< or this, if the token is not in the batch
  /// The row's ancestors in the batch and the row itself, in order of position; the first one hangs
  /// on the committed context.
  std::vector<std::int32_t> path;
};

/// The forward pass: what the model (and FIRP) computes, in the order of the equations.
class ForwardPass {
 public:
  ForwardPass(const Model& model, const Weights& weights, const Kernels& kernels, KvCache& cache,
              ThreadPool& pool, int max_rows);

  /// Runs `rows` through the layers, and keeps the token rows' residual stream after each of
  /// `capture_layers`. `maps`: one a step.
  void run(std::span<const PassRow> rows, std::span<const PackedMap> maps,
           std::span<const int> capture_layers);

  /// Final states of the last pass, after the output norm. [rows x d]
  std::span<const float> final_state(int row) const {
    return {final_states_.data() + static_cast<std::size_t>(row) * d_,
            static_cast<std::size_t>(d_)};
  }
  /// nullptr if that layer was not captured.
  const float* captured(int row, int layer) const;

  /// logits [rows.size() x vocabulary] of rows of the last pass.
  void run_head(std::span<const int> rows, std::span<float> logits);

 private:
  void run_thread(int thread);
  void embed(int thread);
  void enter_rows(int layer, int thread);
  void attention(int layer, int thread);
  void feed_forward(int layer, int thread);

  struct Product {
    const PackedMatrix* weight;
    float* y;
    std::size_t stride;
  };
  /// This thread's share of the outputs of all `products` of the same input rows.
  void multiply(std::initializer_list<Product> products, const Activations& x, int thread) const;
  /// Normalises this thread's share of the residual rows into `normed_`.
  void normalize(const std::vector<float>& weight, bool codes, int thread);
  /// product_ added to the residual stream, for this thread's share of `weight`'s outputs.
  void add_to_residual(const PackedMatrix& weight, int thread);

  float* residual(int row) { return residual_.data() + static_cast<std::size_t>(row) * d_; }
  void barrier(int thread) { pool_.barrier(thread); }

  const Model& model_;
  const ModelConfig& config_;
  const Weights& weights_;
  const Kernels& kernels_;
  KvCache& cache_;
  ThreadPool& pool_;
  const int d_;

  // The running pass.
  std::span<const PassRow> rows_;
  std::span<const PackedMap> maps_;
  std::vector<int> capture_layers_;
  std::vector<int> active_rows_;  ///< [layers]: rows that exist in a layer
  int first_layer_ = 0;
  int token_rows_ = 0;

  // [max_rows x width] each
  std::vector<float> residual_, query_, key_, value_, product_, gate_, up_, final_states_;
  std::vector<float> cosines_, sines_;  ///< [max_rows x RoPE pairs]
  std::vector<std::vector<float>> captured_;
  Activations normed_, attended_, gated_, map_input_, head_input_;
  std::vector<std::vector<std::int32_t>> slots_;  ///< of each thread
};

}  // namespace firp
