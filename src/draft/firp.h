#pragma once

#include "draft/source.h"

namespace firp {

/// kInPass: the pass that verifies a tree also runs the pseudo rows of every node. kDeferred: a
/// second, short pass runs the pseudo rows of the node where the accepted path ended. Same drafts.
enum class Drafting { kInPass, kDeferred };

/// The engine's heads: FIRP's maps, or Medusa's blocks.
class FirpSource : public DraftSource {
 public:
  /// An Error where the engine has no heads, or theirs cannot draft this way.
  FirpSource(Engine& engine, Drafting drafting);

  std::vector<int> captured_layers() const override;
  int rows_a_pass(int nodes) const override;
  void add_rows(std::vector<Row>& rows, std::span<const Token> tokens) override;
  DraftTree draft(const DraftPoint& point) override;

 private:
  /// The chain p_{i,1..steps} of the row `anchor`, or of the sequence's last committed token
  /// (kContext), as far as the context has room.
  void add_pseudo_rows(std::vector<Row>& rows, int sequence, int anchor, int steps) const;
  /// Deferred: runs the pseudo rows behind the row where the path ended.
  std::vector<int> run_pseudo_rows(const DraftPoint& point);

  Engine& engine_;
  const Drafting drafting_;
  std::vector<int> first_pseudo_row_;  ///< in-pass: of each token row of the last pass, and the end
};

}  // namespace firp
