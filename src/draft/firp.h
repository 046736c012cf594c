#pragma once

#include <optional>
#include <vector>

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
  bool drafts_in_pass() const override { return drafting_ == Drafting::kInPass; }
  int rows_a_pass(int nodes) const override;
  void add_rows(std::vector<Row>& rows, int root, std::span<const Token> tokens) override;
  std::vector<Row> prepare(const Pass& verified, const DraftPoint& point) override;
  DraftTree draft(const DraftPoint& point, const Proposal* proposal) override;

 private:
  /// The chain p_{i,1..K} of the row `anchor`, as far as the context has room. `position`: of its
  /// first row.
  void add_pseudo_rows(std::vector<Row>& rows, int anchor, int position) const;

  Engine& engine_;
  const Drafting drafting_;
  // In-pass: what was run behind each token row of the sequence, from its root on.
  int root_ = 0;
  std::vector<std::vector<int>> pseudo_rows_;
  std::optional<Proposal> proposal_;
  DraftChain chain_;  ///< deferred: what prepare() made last
};

}  // namespace firp
