#pragma once

#include <climits>
#include <memory>

#include "engine/engine.h"

namespace firp {

/// Our own kernels and forward pass, for CPUs and the architectures of ModelConfig. A row's result
/// depends on nothing else in its batch (docs/numerics.md).
class NativeEngine final : public Engine {
 public:
  /// Packs the weights. `model` must outlive the engine.
  NativeEngine(const Model& model, const EngineOptions& options);
  ~NativeEngine() override;
  NativeEngine(NativeEngine&&) noexcept;

  const ModelConfig& config() const override;
  const EngineOptions& options() const override;
  const char* isa() const override;  ///< the instruction set
  std::size_t weight_bytes() const override;

  void set_heads(const Heads& heads) override;
  int draft_steps() const override;
  bool token_input() const override;
  int draft_layer(int step) const override;
  bool medusa() const override;

  int positions() const override { return INT_MAX; }
  int add_sequence() override;
  void remove_sequence(int sequence) override;
  bool has_sequence(int sequence) const override;
  int length(int sequence) const override;
  void truncate(int sequence, int length) override;

  void forward(std::span<const Row> rows, std::span<const int> capture_layers = {},
               std::span<const Sublayer> skipped = {}) override;
  std::span<const float> hidden(int row, int layer) const override;
  std::span<const float> final_state(int row) const override;
  std::span<const float> logits(std::span<const int> rows) override;
  std::span<const BestTokens> best_tokens(std::span<const int> rows, int count,
                                          bool log_sums = false) override;
  void propose(std::span<const int> pseudo_rows) override;
  std::vector<std::vector<Candidate>> drafts_behind(int step,
                                                    std::span<const Token> previous) override;
  void commit(int sequence, std::span<const int> rows) override;

  void profile(bool on) override;
  std::vector<PhaseTime> phase_times() const override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firp
