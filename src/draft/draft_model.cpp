#include "draft/draft_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "engine/token_chain.h"

namespace firp {
namespace {

constexpr int kSteps = 4;

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

Pass DraftModelSource::follow(std::span<const Token> tokens) {
  // One token at least is run, for its logits.
  const int known = drafter_.adopt(sequence_, tokens.first(tokens.size() - 1));
  return *append_tokens(drafter_, sequence_, tokens.subspan(known));
}

DraftTree DraftModelSource::draft(const DraftPoint& point, const Proposal* /*proposal*/) {
  std::vector<Token> text(point.tokens.begin(), point.tokens.end() - 1);
  const std::size_t before = text.size();
  return draft_token_by_token(drafter_, kSteps, point, [&](std::span<const Token> path) {
    text.resize(before);
    text.insert(text.end(), path.begin(), path.end());
    return follow(text);
  });
}

}  // namespace firp
