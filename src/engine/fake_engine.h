#pragma once

#include <climits>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "engine/engine.h"

namespace firp {

/// An engine without arithmetic, for the tests of what stands above engines. What it gives behind a
/// row is a hash of all tokens that the row sees, so that a row with a wrong context shows; and in
/// good part of the last of them, so that its texts repeat themselves. Its heads know it. Its rows
/// depend on nothing else in their pass, unless that is asked for.
///
/// It keeps for itself what was committed, and throws a std::logic_error where that is not what the
/// base class believes, or where a pseudo row's source is not that of its sequence's last token.
class FakeEngine final : public Engine {
 public:
  struct Traits {
    int vocabulary = 12;
    int draft_steps = 3;
    double draft_accuracy = 0.8;  ///< how often the right token is among a step's candidates
    int sequences_a_pass = INT_MAX;
    bool keeps_contexts_apart = false;
    /// By how much the logits of a row may differ with the number of rows beside it.
    float rounding = 0;
  };
  static constexpr int kLayers = 2;

  explicit FakeEngine(const EngineOptions& options, const Traits& traits);
  explicit FakeEngine(const EngineOptions& options) : FakeEngine(options, Traits()) {}

  /// A pass that ran.
  struct Ran {
    std::vector<Row> rows;
    std::vector<int> captured;

    int sequences() const;
    int token_rows() const;
    /// Of sequences, those with a row that is decoded.
    int decoders() const;
    bool drafts() const { return token_rows() == 0; }
  };
  std::vector<Ran> passes;

  enum class Call { kRun, kHead, kCommit };  ///< kHead: logits and best tokens
  enum class Fault { kError, kCancelled, kNan };
  /// Of the calls from now on, the `nth` (1: the next) fails. kNan: of a head, which gives no
  /// numbers.
  void fail(Call call, int nth, Fault fault = Fault::kError) { faults_[call] = {nth, fault}; }

  const ModelConfig& config() const override { return config_; }
  const EngineOptions& options() const override { return options_; }
  const char* isa() const override { return "none"; }
  std::size_t weight_bytes() const override { return 0; }
  void set_heads(const Heads& heads) override { traits_.draft_steps = heads.count(); }
  int draft_steps() const override { return traits_.draft_steps; }
  bool token_input() const override { return false; }
  int draft_layer(int step) const override { return 1 + step % kLayers; }
  bool medusa() const override { return false; }
  int sequences_a_pass() const override { return traits_.sequences_a_pass; }

 private:
  /// What is behind some tokens.
  struct Place {
    std::uint64_t hash = 0;
    int length = 0;
    Token last = 0;
    bool operator==(const Place&) const = default;
  };
  static Place behind(Place place, Token token);
  static Place behind(std::span<const Token> tokens);
  static std::vector<float> written(const Place& place);
  static Place read(std::span<const float> state);
  std::vector<float> logits_of(const Place& place, std::uint64_t noise) const;
  BestTokens best_of(std::span<const float> logits, int count) const;
  BestTokens candidates(const Place& place, int step) const;
  std::optional<Fault> fault(Call call);
  std::vector<float> row_logits(int row, std::optional<Fault> fault) const;

  void run(const Batch& batch) override;
  std::span<const float> hidden(int row, int layer) const override;
  std::span<const float> final_state(int row) const override { return states_.at(row); }
  std::span<const float> logits(std::span<const int> rows) override;
  std::span<const BestTokens> best_tokens(std::span<const int> rows, int count,
                                          bool log_sums) override;
  std::vector<Proposal> propose(std::span<const std::vector<int>> anchors) override;
  void commit(int sequence, std::span<const int> path) override;

  void add_context(int sequence) override;
  void remove_context(int sequence) override;
  void truncate_context(int sequence, int length) override;
  void share_context(int from, int to, int length) override;
  bool keeps_contexts_apart() const override { return traits_.keeps_contexts_apart; }

  const EngineOptions options_;
  Traits traits_;
  ModelConfig config_;
  struct Due {
    int calls;
    Fault kind;
  };
  std::map<Call, Due> faults_;
  std::map<int, std::vector<Token>> cache_;  ///< by sequence

  // The last pass.
  std::vector<Place> places_;               ///< of a pseudo row: its anchor's
  std::vector<std::vector<float>> states_;  ///< what was written of the places
  std::uint64_t noise_ = 0;                 ///< 0: none
  std::vector<float> logits_;
  std::vector<BestTokens> best_;
};

}  // namespace firp
