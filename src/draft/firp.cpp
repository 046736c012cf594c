#include "draft/firp.h"

#include <algorithm>

#include "engine/token_chain.h"
#include "model/error.h"

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

void FirpSource::add_pseudo_rows(std::vector<Row>& rows, int sequence, int anchor,
                                 int steps) const {
  int position = anchor == kContext ? engine_.length(sequence) : rows[anchor].position + 1;
  int parent = anchor;
  for (int step = 1; step <= steps && position < engine_.options().context; ++step) {
    rows.push_back({.sequence = sequence, .position = position++, .parent = parent, .step = step});
    parent = static_cast<int>(rows.size()) - 1;
  }
}

void FirpSource::add_rows(std::vector<Row>& rows, std::span<const Token> /*tokens*/) {
  if (drafting_ != Drafting::kInPass) return;
  const int token_rows = static_cast<int>(rows.size());
  first_pseudo_row_.clear();
  for (int row = 0; row < token_rows; ++row) {
    first_pseudo_row_.push_back(static_cast<int>(rows.size()));
    add_pseudo_rows(rows, rows[row].sequence, row, engine_.draft_steps());
  }
  first_pseudo_row_.push_back(static_cast<int>(rows.size()));
}

std::vector<int> FirpSource::run_pseudo_rows(const DraftPoint& point) {
  std::vector<Row> rows;
  add_pseudo_rows(rows, point.sequence, kContext,
                  std::min(engine_.draft_steps(), point.most_steps));
  std::vector<std::vector<float>> sources;
  for (Row& row : rows) {
    const std::span<const float> h = engine_.draft_source(point.row, row.step);
    row.source = sources.emplace_back(h.begin(), h.end());
    row.token_behind = point.tokens.back();
  }
  if (!rows.empty()) engine_.forward(rows);
  return first_rows(rows.size());
}

DraftTree FirpSource::draft(const DraftPoint& point) {
  std::vector<int> pseudo_rows;
  if (drafting_ == Drafting::kDeferred) {
    pseudo_rows = run_pseudo_rows(point);
  } else {
    for (int row = first_pseudo_row_[point.row]; row < first_pseudo_row_[point.row + 1]; ++row) {
      pseudo_rows.push_back(row);
    }
  }
  if (pseudo_rows.empty()) return {};
  engine_.propose(pseudo_rows);
  const Continuations behind = [this](int step, std::span<const Token> previous) {
    return engine_.drafts_behind(step, previous);
  };
  // A node stands behind the last token, and the context must hold it.
  const int room = engine_.options().context - static_cast<int>(point.tokens.size());
  const int steps = std::min(static_cast<int>(pseudo_rows.size()), room);
  const Token root = point.tokens.back();
  return point.chain ? build_draft_chain(steps, root, behind)
                     : build_draft_tree(steps, point.most_nodes, root, behind);
}

}  // namespace firp
