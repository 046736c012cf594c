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
  int row;         ///< of the verifying pass: the token before the last, where the path ended
  int most_nodes;  ///< of the tree
  bool chain;      ///< one branch
  int most_steps = INT_MAX;  ///< ahead, for a source whose cost depends on them
};

/// A way to guess what comes next. What it guesses is verified by the whole model, so that it can
/// only cost time: the seam behind which FIRP and its rivals are compared.
///
/// One for each sequence. Sequences share passes: the rows of several sources stand in one.
class DraftSource {
 public:
  virtual ~DraftSource() = default;

  /// Layers whose residual stream the verifying pass captures for prepare().
  virtual std::vector<int> captured_layers() const { return {}; }

  /// Whether the verifying pass itself runs what drafts, in rows of add_rows().
  virtual bool drafts_in_pass() const { return false; }
  /// The sequence's rows in a verifying pass with a tree of `nodes`, those of add_rows() included.
  virtual int rows_a_pass(int nodes) const { return 1 + nodes; }
  /// Appends rows of its own to a verifying pass. Of `rows`, the sequence's are those from `root`
  /// on: the root and the tree. `tokens`: of the sequence, the root the last.
  virtual void add_rows(std::vector<Row>& /*rows*/, int /*root*/,
                        std::span<const Token> /*tokens*/) {}

  /// Takes from the verifying pass, whose path is committed, what draft() needs, before another one
  /// runs. Gives the pseudo rows that it wants in the drafting pass which all sequences share;
  /// their parents count from the first of them. What they refer to stays until draft().
  virtual std::vector<Row> prepare(const Pass& /*verified*/, const DraftPoint& /*point*/) {
    return {};
  }

  /// A tree behind the last token. `proposal`: of the rows of prepare(); nullptr where it gave
  /// none. May run passes of its own; leaves the sequence's context as it was.
  virtual DraftTree draft(const DraftPoint& point, const Proposal* proposal) = 0;
};

/// A tree around one path, drafted token by token: `candidates[j]` are those behind its first j
/// tokens, and the first of them is the path's next.
DraftTree tree_around_path(std::span<const std::vector<Candidate>> candidates,
                           const DraftPoint& point);

/// Such a tree of `steps` at most, as far as `drafter`'s context has room. `run` runs a path that
/// begins with point.tokens.back(), and gives the pass whose last row is that of its last token.
DraftTree draft_token_by_token(const Engine& drafter, int steps, const DraftPoint& point,
                               const std::function<Pass(std::span<const Token> path)>& run);

}  // namespace firp
