#pragma once

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

  const ModelConfig& config() const override;
  const EngineOptions& options() const override;
  const char* isa() const override;
  std::size_t weight_bytes() const override;

  void set_heads(const Heads& heads) override;
  int draft_steps() const override;
  bool token_input() const override;
  int draft_layer(int step) const override;
  bool medusa() const override;

  std::string context_form() const override;  ///< at first reads the model's file
  std::size_t context_bytes(int length) const override;
  void write_context(int sequence, const WriteBytes& write) const override;

  void profile(bool on) override;
  std::vector<PhaseTime> phase_times() const override;

 private:
  void run(const Batch& batch) override;
  std::span<const float> hidden(int row, int layer) const override;
  std::span<const float> final_state(int row) const override;
  std::span<const float> logits(std::span<const int> rows) override;
  std::span<const BestTokens> best_tokens(std::span<const int> rows, int count,
                                          bool log_sums) override;
  std::vector<Proposal> propose(std::span<const std::vector<int>> anchors) override;
  void commit(int sequence, std::span<const int> path) override;

  void add_context(int sequence) override;
  void remove_context(int sequence) override;
  int keepable_context(int sequence, int length) const override;
  void truncate_context(int sequence, int length) override;
  void share_context(int from, int to, int length) override;
  void read_context(int sequence, int length, const ReadBytes& read) override;
  int held_positions() const override;  ///< by whole pages

  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firp
