#pragma once

#include <array>
#include <atomic>
#include <initializer_list>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "engine/kv_cache.h"
#include "engine/thread_pool.h"
#include "engine/weights.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "model/vocabulary.h"

namespace firp {

/// W_j (with T_j to its right where there is a token input) and b_j, packed.
struct PackedMap {
  int layer = 0;        ///< t_j
  PackedMatrix weight;  ///< [d x d] or [d x 2 d]
  std::vector<float> bias;

  bool reads_token(int d) const { return weight.inputs() > d; }
};

/// What is added to pseudo rows before they enter a layer (model/heads.h).
struct PackedAdapter {
  int layer = 0;
  PackedMatrix down;  ///< [rank x d]
  PackedMatrix up;    ///< [d x rank]
};

/// A row of the running pass. Token rows come first, then pseudo rows by the layer where they enter
/// and by step, so that the rows that exist in a layer are always the first ones.
struct PassRow {
  int sequence = 0;
  int position = 0;
  Token token = -1;
  int step = 0;                   ///< 0: a token row
  int entry_layer = 0;            ///< layers it does not run through
  int source_row = -1;            ///< of a pseudo row: where h_i^{t_j} is taken from,
  const float* source = nullptr;  ///< or this, if the token is not in the batch
  Token token_behind = -1;        ///< of a pseudo row of maps with a token input
  /// The row's ancestors in the batch and the row itself, one a position, the first behind the
  /// committed context; kNoRow where a pseudo row leaves a step out.
  std::vector<std::int32_t> path;
};
inline constexpr std::int32_t kNoRow = -1;

/// What one pass is to do. The spans must stay until it has run.
struct ForwardTask {
  std::span<const PassRow> rows;
  std::span<const LayerWeights> layers;  ///< the model's, or those that only draft
  const PackedMatrix& head;         ///< reads the rows afterwards: prefetched by the last layer
  std::span<const PackedMap> maps;  ///< one a step
  std::span<const PackedAdapter> adapters;
  bool medusa = false;                  ///< pseudo rows are made from final states
  std::span<const int> capture_layers;  ///< after which the rows' residual stream is kept
  std::span<const Sublayer> skipped;
  const std::atomic<bool>* cancelled =
      nullptr;  ///< ends the pass after the layer in which it is seen
};

/// What a pass spends its time on, as thread 0 sees it.
enum class Phase {
  kEmbedding,
  kDraftMaps,
  kNorms,
  kQueryKeyValue,
  kRopeAndCache,
  kAttention,
  kAttentionOutput,
  kExperts,  ///< a mixture's: which rows use which
  kGateUp,
  kDown,
  kHead,
  kBarriers,  ///< waiting for the other threads
};
inline constexpr int kPhases = 12;

/// The forward pass: what the model (and FIRP) computes, in the order of the equations.
class ForwardPass {
 public:
  ForwardPass(const Model& model, const Weights& weights, const Kernels& kernels, KvCache& cache,
              ThreadPool& pool, int max_rows, int context);

  /// Throws Cancelled where the pass was: it has no results then.
  void run(const ForwardTask& task);

  /// Scratch slot of a row of the last pass. A prompt's chunk has its positions' lanes: slot and
  /// position are equal modulo 64.
  int slot(int row) const { return row_slots_[row]; }

  /// Final states of the last pass, after the output norm. [rows x d]
  std::span<const float> final_state(int row) const {
    return {final_states_.data() + static_cast<std::size_t>(row) * d_,
            static_cast<std::size_t>(d_)};
  }
  /// nullptr if that layer was not captured, or the row has no state there.
  const float* captured(int row, int layer) const;

  /// `head` (the model's, or some rows of it) on rows of the last pass: all logits, [rows.size() x
  /// head.outputs()].
  void run_head(const PackedMatrix& head, std::span<const int> rows, std::span<float> logits);
  /// The `count` best outputs of each row, with `sums` their log_sum, too. The logits are not kept.
  void best_of_head(const PackedMatrix& head, std::span<const int> rows, int count, bool sums,
                    std::span<BestTokens> best);

  /// Seconds in each phase since profile(true).
  void profile(bool on);
  const std::array<double, kPhases>& phase_seconds() const { return phase_seconds_; }

 private:
  void run_thread(int thread);
  void embed(int thread);
  void enter_rows(int layer, int thread);
  void make_rows(int first, int anchors, int end, int thread);
  void capture(int layer, int thread);
  void finish_rows(int thread);
  void adapt_rows(int layer, int thread);
  void attention(int layer, int thread);
  void feed_forward(int layer, int thread);
  void route(const LayerWeights& w, int thread);
  void gate_and_up(const LayerWeights& w, Activations& x, int thread);
  void add_experts(const LayerWeights& w, int thread);
  void prepare_head(const PackedMatrix& head, std::span<const int> rows, int thread);

  struct Product {
    const PackedMatrix* weight;
    float* y;
    std::size_t stride;
    bool add = false;
  };
  /// This thread's part of the outputs of all `products` of the same input rows. `next`: the matrix
  /// that it reads after them.
  void multiply(std::span<const Product> products, const Activations& x, const PackedMatrix* next,
                int thread) const;
  void multiply(std::initializer_list<Product> products, const Activations& x,
                const PackedMatrix* next, int thread) const {
    multiply(std::span(products.begin(), products.size()), x, next, thread);
  }
  /// Where this thread's share of a matrix begins; nullptr for none.
  const std::byte* share_of(const PackedMatrix* matrix, int thread) const;
  /// Normalises this thread's share of the residual rows into `normed_`, in the forms that
  /// `readers` read.
  void normalize(const std::vector<float>& weight,
                 std::initializer_list<const PackedMatrix*> readers, int thread);
  /// Makes the forms that `readers` read of a row's groups first .. end - 1.
  void prepare_for(std::initializer_list<const PackedMatrix*> readers, Activations& x, int row,
                   int first, int end) const;
  /// Adds what attention or feed-forward gave to this thread's share of the residual rows: after a
  /// norm where the architecture has one (`weight`), scaled where it has that.
  void add_to_residual(const std::vector<float>& weight, int thread);
  /// Where that product goes: straight to the residual stream if nothing happens on the way.
  bool adds_directly() const { return !config_.norms_after && config_.residual_scale == 1.0f; }
  Product product_to_residual(const PackedMatrix& weight) {
    return {&weight, adds_directly() ? residual_.data() : added_.data(),
            static_cast<std::size_t>(d_), /*add=*/adds_directly()};
  }
  /// What becomes of the head's outputs.
  void finish_logits(float* logits, int n) const;
  /// Makes the form of `reader` from this thread's share of the values.
  void prepare(Activations& x, const PackedMatrix& reader, int thread) const;
  void turn_to(int positions);

  /// What a pseudo row is made from. [d]
  const float* source(const PassRow& row);
  /// Rows that have a residual stream after `layer` layers: the first ones.
  int states_after(int layer) const { return medusa_ ? token_rows_ : active_rows_[layer]; }
  float* residual(int row) { return residual_.data() + static_cast<std::size_t>(row) * d_; }
  /// The phase that ends here is over when all threads have come.
  void barrier(int thread, Phase ended);
  void begin_profile(int thread);

  const Model& model_;
  const ModelConfig& config_;
  const Weights& weights_;
  const Kernels& kernels_;
  KvCache& cache_;
  ThreadPool& pool_;
  const int d_;

  // The running pass.
  std::span<const PassRow> rows_;
  std::span<const LayerWeights> layers_;
  const PackedMatrix* next_head_ = nullptr;
  std::span<const PackedMap> maps_;
  std::span<const PackedAdapter> adapters_;
  std::vector<int> capture_layers_;
  std::vector<int> active_rows_;  ///< [layers + 1]: rows that exist in a layer, and at the end
  std::vector<bool> skipped_;     ///< [2 layers]: by Sublayer
  bool medusa_ = false;
  const std::atomic<bool>* cancelled_ = nullptr;
  bool ends_early_ = false;  ///< written by thread 0 between two barriers, so that all see the same
  int first_layer_ = 0;
  int token_rows_ = 0;
  std::span<const int> row_slots_;  ///< in the cache's scratch pages

  /// The angles of one of the model's rotations.
  struct Rotation {
    std::span<const float> frequencies;
    float magnitude;
    std::vector<float> cosines, sines;  ///< [positions so far x pairs]
  };
  std::vector<Rotation> rotations_;  ///< as ModelConfig::ropes
  // [max_rows x width] each
  std::vector<float> residual_, query_, key_, value_, gate_, up_, final_states_, added_;
  /// [max_rows]: 1 / rms of all heads of a row together, where the architecture norms them so
  std::vector<float> query_inverses_, key_inverses_;
  std::vector<std::vector<float>> captured_;
  Activations normed_, attended_, gated_, map_input_, head_input_, adapter_input_, adapter_inner_;
  std::vector<float> ones_;  ///< [d]

  /// Rows that an expert takes, in the order of gathered rows. Without a mixture the feed-forward
  /// is one expert, and takes the rows as they are.
  struct ExpertRows {
    int expert, first, count;
  };
  std::vector<ExpertRows> expert_rows_;  ///< in ascending order of experts, those that have any
  /// What a row uses, likeliest first.
  struct Choice {
    int expert;
    float weight;
    int gathered;  ///< which of the gathered rows is its own
  };
  std::vector<Choice> choices_;  ///< [rows x experts_used]
  std::vector<int> gathered_;    ///< whose rows they are: [rows * experts_used]
  std::vector<float> router_logits_, expert_outputs_;  ///< [rows x experts], [gathered rows x d]
  Activations expert_input_;
  std::vector<std::vector<std::int32_t>>
      slots_;  ///< [max_rows]: what a row's path is in the scratch
  std::vector<std::vector<AttentionHead>> heads_;  ///< of each thread
  std::vector<Product> map_products_;              ///< of the steps whose rows are made together

  // The head's outputs are looked through in chunks of this many, as soon as they are made.
  static constexpr int kHeadChunk = 512;
  std::vector<std::vector<float>> chunk_logits_;      ///< of each thread: [rows x kHeadChunk]
  std::vector<std::vector<BestTokens>> thread_best_;  ///< of each thread: [rows]
  std::vector<ExpSum> chunk_sums_;                    ///< [chunks x rows]

  bool profiling_ = false;
  double phase_begin_ = 0;
  std::array<double, kPhases> phase_seconds_{};
};

}  // namespace firp
