#include "draft/lookahead.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "draft/ngram.h"

namespace firp {

void LookaheadSource::add_rows(std::vector<Row>& rows, int root, std::span<const Token> tokens) {
  if (!begun_) {  // any tokens will do; those of the prompt are at least of its subject
    for (std::size_t i = 0; auto& level : window_) {
      for (Token& token : level) token = tokens[i++ * 7 % tokens.size()];
    }
    begun_ = true;
  }
  first_row_ = -1;
  const int sequence = rows[root].sequence;
  if (engine_.length(sequence) + kWindow + kLevels > engine_.options().context) return;
  first_row_ = static_cast<int>(rows.size());
  for (int level = 0; level < kLevels; ++level) {
    for (int column = 0; column < kWindow; ++column) {
      const int here = static_cast<int>(rows.size());
      const int parent = level > 0 ? here - kWindow : column > 0 ? here - 1 : root;
      rows.push_back({.sequence = sequence, .parent = parent, .token = window_[level][column]});
    }
  }
}

std::vector<Row> LookaheadSource::prepare(const Pass& verified, const DraftPoint& /*point*/) {
  if (first_row_ >= 0) {
    std::vector<int> last_level(kWindow);
    std::iota(last_level.begin(), last_level.end(), first_row_ + kWindow * (kLevels - 1));
    std::array<Token, kWindow> next;
    const std::span<const BestTokens> best = verified.best_tokens(last_level, 1);
    for (int column = 0; column < kWindow; ++column) {
      next[column] = best[column].tokens.front().token;
      Ngram ngram;
      for (int level = 1; level < kLevels; ++level) ngram[level - 1] = window_[level][column];
      ngram.back() = next[column];
      std::deque<Ngram>& known = pool_[window_[0][column]];
      std::erase(known, ngram);
      known.push_front(ngram);
      if (known.size() > kNgramsAToken) known.pop_back();
    }
    // A level's guesses are one token further on, and so is the root in the next pass.
    std::shift_left(window_.begin(), window_.end(), 1);
    window_.back() = next;
  }
  return {};
}

DraftTree LookaheadSource::draft(const DraftPoint& point, const Proposal* /*proposal*/) {
  DraftTree tree;
  const auto found = pool_.find(point.tokens.back());
  if (found == pool_.end()) return tree;
  const int room = engine_.options().context - static_cast<int>(point.tokens.size());
  float log_probability = 0;
  for (const Ngram& ngram : found->second) {  // the latest are the likeliest; how likely is unknown
    DraftTree path;
    for (int depth = 1; depth <= std::min(kLevels, room); ++depth) {
      log_probability -= 0.1f;
      path.push_back({ngram[depth - 1], depth - 2, depth, log_probability});
    }
    tree = join(tree, path);
    if (point.chain) break;
  }
  tree.resize(std::min<std::size_t>(tree.size(), point.most_nodes));
  return tree;
}

}  // namespace firp
