#pragma once

#include <climits>
#include <functional>
#include <span>
#include <vector>

#include "draft/draft_tree.h"
#include "engine/engine.h"

namespace firp {

/// Where a sequence stands when its next tokens are to be drafted.
struct DraftPoint {
  int sequence;
  std::span<const Token> tokens;  ///< all of them; all but the last are in the engine's context
  int row;         ///< of the last pass: the token before the last, where the accepted path ended
  int most_nodes;  ///< of the tree
  bool chain;      ///< one branch
  int most_steps = INT_MAX;  ///< ahead, for a source whose cost depends on them
};

/// A way to guess what comes next. What it guesses is verified by the whole model, so that it can
/// only cost time: the seam behind which FIRP and its rivals are compared.
///
/// One for each sequence.
class DraftSource {
 public:
  virtual ~DraftSource() = default;

  /// Layers whose residual stream the verifying pass keeps for draft().
  virtual std::vector<int> captured_layers() const { return {}; }

  /// Rows of a verifying pass with a tree of `nodes`, those of add_rows() included.
  virtual int rows_a_pass(int nodes) const { return 1 + nodes; }

  /// Appends rows of its own to a verifying pass, whose rows so far are the root (row 0) and the
  /// tree. `tokens`: of the sequence, the root the last.
  virtual void add_rows(std::vector<Row>& /*rows*/, std::span<const Token> /*tokens*/) {}

  /// A tree behind the last token, once the accepted path of the last pass is committed. May run
  /// passes of its own; leaves the sequence's context as it was.
  virtual DraftTree draft(const DraftPoint& point) = 0;
};

/// A tree around one path, drafted token by token: `candidates[j]` are those behind its first j
/// tokens, and the first of them is the path's next.
DraftTree tree_around_path(std::span<const std::vector<Candidate>> candidates,
                           const DraftPoint& point);

/// Such a tree of `steps` at most, as far as `drafter`'s context has room. `run` runs a path that
/// begins with point.tokens.back(); the row of its last token in `drafter`'s last pass.
DraftTree draft_token_by_token(Engine& drafter, int steps, const DraftPoint& point,
                               const std::function<int(std::span<const Token> path)>& run);

}  // namespace firp
