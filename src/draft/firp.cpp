#include "draft/firp.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace firp {

FirpSource::FirpSource(Engine& engine, Drafting drafting) : engine_(engine), drafting_(drafting) {
  if (engine.draft_steps() == 0) {
    throw Error("drafting with FIRP needs heads for this model; make them with `firp train`");
  }
  if (drafting == Drafting::kInPass && engine.token_input()) {
    throw Error(
        "these heads read the token behind a row, which the same pass does not know yet: "
        "they draft deferred only (make others with `firp train --no-token-input`)");
  }
}

std::vector<int> FirpSource::captured_layers() const {
  return drafting_ == Drafting::kDeferred ? engine_.draft_layers() : std::vector<int>();
}

int FirpSource::rows_a_pass(int nodes) const {
  return (1 + nodes) * (drafting_ == Drafting::kInPass ? 1 + engine_.draft_steps() : 1);
}

void FirpSource::add_pseudo_rows(std::vector<Row>& rows, int anchor, int position) const {
  const int sequence = rows[anchor].sequence;
  int parent = anchor;
  for (int step = 1; step <= engine_.draft_steps() && position < engine_.options().context;
       ++step, ++position) {
    rows.push_back({.sequence = sequence, .parent = parent, .step = step});
    parent = static_cast<int>(rows.size()) - 1;
  }
}

void FirpSource::add_rows(std::vector<Row>& rows, int root, std::span<const Token> /*tokens*/) {
  if (drafting_ != Drafting::kInPass) return;
  root_ = root;
  pseudo_rows_.clear();
  const int end = static_cast<int>(rows.size());
  for (int row = root; row < end; ++row) {
    int position = engine_.length(rows[row].sequence) + 1;  // of the row's first pseudo row
    for (int above = rows[row].parent; above != kContext; above = rows[above].parent) ++position;
    const auto first = static_cast<int>(rows.size());
    add_pseudo_rows(rows, row, position);
    std::vector<int>& added = pseudo_rows_.emplace_back(rows.size() - first);
    std::iota(added.begin(), added.end(), first);
  }
}

std::vector<Row> FirpSource::prepare(const Pass& verified, const DraftPoint& point) {
  if (drafting_ == Drafting::kInPass) {
    const std::vector<int>& behind = pseudo_rows_[point.row - root_];
    proposal_.reset();
    if (!behind.empty()) proposal_ = verified.propose(behind);
    return {};
  }
  const int room = engine_.options().context - engine_.length(point.sequence);
  const int steps = std::min({engine_.draft_steps(), point.most_steps, room});
  chain_ = verified.draft_chain(point.row, steps, point.tokens.back());
  return chain_.rows;
}

DraftTree FirpSource::draft(const DraftPoint& point, const Proposal* proposal) {
  if (drafting_ == Drafting::kInPass && proposal_) proposal = &*proposal_;
  if (proposal == nullptr) return {};
  const Continuations behind = [&](int step, std::span<const Token> previous) {
    return proposal->behind(step, previous);
  };
  // A node stands behind the last token, and the context must hold it.
  const int room = engine_.options().context - static_cast<int>(point.tokens.size());
  const int steps = std::min(proposal->steps(), room);
  const Token root = point.tokens.back();
  return point.chain ? build_draft_chain(steps, root, behind)
                     : build_draft_tree(steps, point.most_nodes, root, behind);
}

}  // namespace firp
