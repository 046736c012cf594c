#pragma once

#include <span>
#include <vector>

#include "engine/proposal.h"
#include "engine/row.h"

namespace firp {

class Engine;

/// The pseudo rows of steps 1, 2, .. behind the last token of a committed context, and what they
/// are made from. Steps that enter after the same layer share it: one product makes their rows.
struct DraftChain {
  std::vector<Row> rows;
  std::vector<std::vector<float>> sources;
};

/// What a forward pass gave. It is over when the engine runs its next one: asked for anything after
/// that, it throws a std::logic_error. Rows are numbered as in the batch.
class Pass {
 public:
  int rows() const;
  /// The position that row `row` stands at.
  int position(int row) const;

  /// The residual stream of a row after `layer` layers, which the pass captured: h^t of a token
  /// row; of a pseudo row from t_j on, where it is p_{i,j} itself. [d]
  std::span<const float> hidden(int row, int layer) const;

  /// The final state of a row after the model's last norm: what the head reads. [d]
  std::span<const float> final_state(int row) const;

  /// What the pseudo row of `step` behind a row is made from, a Row::source: the captured h^{t_j},
  /// or Medusa's final state.
  std::span<const float> draft_source(int row, int step) const;
  /// The rows that draft behind row `row` once it is committed; `token_behind` follows it.
  DraftChain draft_chain(int row, int steps, Token token_behind) const;

  /// Logits of some rows: [rows.size() x vocabulary], valid until the engine is asked for others.
  std::span<const float> logits(std::span<const int> rows) const;

  /// The `count` most probable tokens of each of some rows, best first (of equal ones the smaller
  /// number first), with `log_sums` their log_sum, too. Cheaper than logits(), which it replaces
  /// where the rest of the distribution is not needed. Valid until the engine is asked for others.
  /// An Error where no logit of a row is a number.
  std::span<const BestTokens> best_tokens(std::span<const int> rows, int count,
                                          bool log_sums = false) const;

  /// What the pseudo rows of each of some anchors propose, steps 1 .. of one anchor a list.
  std::vector<Proposal> propose(std::span<const std::vector<int>> anchors) const;
  Proposal propose(std::vector<int> pseudo_rows) const;

  /// Appends rows, a path of tokens that hangs on the sequence's context, to that context. Each
  /// sequence of a pass has its own path. Not for a pass that left out parts of the model.
  void commit(int sequence, std::span<const int> path) const;

 private:
  friend class Engine;
  Pass(Engine& engine, unsigned long long number) : engine_(&engine), number_(number) {}
  Engine& engine() const;

  Engine* engine_;
  unsigned long long number_;
};

}  // namespace firp
