#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace firp {

/// Where libllama computes; names and meanings are llama.cpp's.
struct LlamaOptions {
  int gpu_layers = -1;                   ///< -ngl; -1: as many as fit
  std::vector<std::string> devices;      ///< --device; empty: llama.cpp chooses; "none": the CPU
  std::vector<float> tensor_split;       ///< --tensor-split
  std::vector<std::string> rpc_servers;  ///< --rpc, HOST:PORT
  int flash_attention = -1;              ///< -fa; 1, 0, or -1: where the device has it
  /// Keeps what a row's result depends on beside its context as small as libllama allows: its keys
  /// and values lie in the order of their positions, and no pass has one row only, for which there
  /// are kernels of other rounding. Of one sequence at a time: what another one leaves free may be
  /// taken out of order.
  bool exact = false;
};

/// Unmodified libllama through its public interface: every backend and most architectures of
/// llama.cpp. A draft tree is expressed by sequence numbers in a unified KV cache; pseudo rows are
/// placeholder tokens whose residual stream is overwritten at the tensor l_out-<t-1> by the graph's
/// evaluation callback (docs/llama-engine.md).
///
/// Its kernels may add in another order for other batches: a row's result holds within rounding.
class LlamaEngine final : public Engine {
 public:
  /// Errors: a model that libllama cannot load; one that is recurrent, hybrid or has an encoder.
  LlamaEngine(std::shared_ptr<const GgufFile> file, const EngineOptions& options,
              const LlamaOptions& llama);
  ~LlamaEngine() override;

  const ModelConfig& config() const override;  ///< names and sizes alone
  const EngineOptions& options() const override;
  const char* isa() const override;  ///< "llama.cpp, CPU"
  std::size_t weight_bytes() const override;

  /// An Error, too, for Medusa's heads, for steps that enter before an earlier one, and where the
  /// residual stream cannot be reached.
  void set_heads(const Heads& heads) override;
  int draft_steps() const override;
  bool token_input() const override;
  int draft_layer(int step) const override;
  bool medusa() const override { return false; }

  int positions() const override { return options().positions; }
  int sequences_a_pass() const override;  ///< with `exact` one

 private:
  /// Errors, too: passes that leave out parts of the model or steps of pseudo rows, or whose trees
  /// have more leaves than libllama has sequences.
  void run(const Batch& batch) override;
  std::span<const float> hidden(int row, int layer) const override;
  /// Only of passes that capture a layer or have pseudo rows.
  std::span<const float> final_state(int row) const override;
  std::span<const float> logits(std::span<const int> rows) override;
  std::span<const BestTokens> best_tokens(std::span<const int> rows, int count,
                                          bool log_sums) override;
  std::vector<Proposal> propose(std::span<const std::vector<int>> anchors) override;
  void commit(int sequence, std::span<const int> path) override;

  void add_context(int sequence) override;
  void remove_context(int sequence) override;
  void truncate_context(int sequence, int length) override;
  void share_context(int from, int to, int length) override;
  /// With `exact`: cells that several sequences hold, or that one leaves behind, are out of order
  /// for the next.
  bool keeps_contexts_apart() const override;

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firp
