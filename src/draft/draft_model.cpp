#include "draft/draft_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "model/error.h"

namespace firp {
namespace {

constexpr int kSteps = 4;
constexpr int kCandidates = 8;  // of each step

}  // namespace

DraftModelSource::DraftModelSource(const Engine& model, Engine& drafter)
    : drafter_(drafter), sequence_(drafter.add_sequence()) {
  const int own = drafter.config().vocabulary_size, other = model.config().vocabulary_size;
  if (own == other) return;
  drafter.remove_sequence(sequence_);
  throw Error(
      fmt::format("the draft model knows {} tokens and the model {}: both need the same vocabulary",
                  own, other));
}

DraftModelSource::~DraftModelSource() { drafter_.remove_sequence(sequence_); }

int DraftModelSource::follow(std::span<const Token> tokens) {
  // One token at least is run, for its logits.
  const auto known = static_cast<std::size_t>(
      std::ranges::mismatch(committed_, tokens.first(tokens.size() - 1)).in1 - committed_.begin());
  committed_.resize(known);
  drafter_.truncate(sequence_, static_cast<int>(known));
  int last = 0;
  while (committed_.size() < tokens.size()) {
    const std::size_t begin = committed_.size();
    const std::size_t count =
        std::min<std::size_t>(tokens.size() - begin, drafter_.options().max_rows);
    std::vector<Row> rows;
    for (std::size_t i = 0; i < count; ++i) {
      rows.push_back({.sequence = sequence_,
                      .position = static_cast<int>(begin + i),
                      .parent = static_cast<int>(i) - 1,
                      .token = tokens[begin + i]});
    }
    std::vector<int> path(count);
    std::iota(path.begin(), path.end(), 0);
    drafter_.forward(rows);
    drafter_.commit(sequence_, path);
    committed_.insert(committed_.end(), &tokens[begin], &tokens[begin] + count);
    last = static_cast<int>(count) - 1;
  }
  return last;
}

DraftTree DraftModelSource::draft(const DraftPoint& point) {
  const int room = drafter_.options().context - static_cast<int>(point.tokens.size());
  const int steps = std::min({kSteps, room, point.most_nodes});
  std::vector<Token> path(point.tokens.begin(), point.tokens.end());
  std::vector<std::vector<Candidate>> candidates;
  while (static_cast<int>(candidates.size()) < steps) {
    candidates.push_back(best_candidates(drafter_, follow(path), point.chain ? 1 : kCandidates));
    path.push_back(candidates.back().front().token);
  }
  return tree_around_path(candidates, point);
}

}  // namespace firp
