#pragma once

#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "model/vocabulary.h"

namespace firp {

inline constexpr int kContext = -1;  ///< a parent: the sequence's committed context

/// One row of a forward pass: a token, or a pseudo hidden state.
///
/// A row sees its sequence's committed context and its own ancestors in the batch. Its position is
/// its parent's plus one (the length of the context for a parent of kContext), plus the steps that
/// a pseudo row leaves out.
struct Row {
  int sequence = 0;
  int parent = kContext;  ///< an earlier row of the batch
  Token token = kNoToken;
  /// j >= 1: the row is p_{i,j}, made by draft map j from h_i^{t_j}, and runs through the layers
  /// from t_j on. Its parent is p_{i,j-1}, or for j = 1 the row of token i; a parent of an earlier
  /// step, or the row of token i for any j, leaves the steps between out of what it sees.
  int step = 0;
  /// For a pseudo row whose token i is not in the batch but the last of the committed context:
  /// h_i^{t_j}, as an earlier pass gave it. [d]; empty otherwise. It must stay until the pass ran.
  std::span<const float> source = {};
  /// For a pseudo row of maps with a token input: the token at position i + 1.
  Token token_behind = kNoToken;
  /// Whether logits, best tokens or the final state of a token row may be asked for: a prompt's
  /// rows do without, all but the last.
  bool decoded = true;

  bool is_pseudo() const { return step > 0; }
};

/// Steps between a row and its parent that the row does not see.
int steps_left_out(const Row& row, const Row* parent);

/// The order of a row's best tokens: of equal ones the smaller number first.
inline bool likelier(const TokenLogit& a, const TokenLogit& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/// The most probable tokens of a row, best first.
struct BestTokens {
  std::vector<TokenLogit> tokens;
  float log_sum = 0;  ///< log sum exp of all the row's logits; 0 where that was not asked for
};

/// A part of a layer that a pass may leave out: 2 l is the attention of layer l, 2 l + 1 its
/// feed-forward.
using Sublayer = int;

}  // namespace firp
