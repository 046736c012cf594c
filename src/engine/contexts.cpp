#include "engine/contexts.h"

#include <algorithm>

#include "engine/token_chain.h"

namespace firp {

int Contexts::add() {
  const auto unused = std::ranges::find(sequences_, Life::kNone, &Sequence::life);
  const int sequence = static_cast<int>(unused - sequences_.begin());
  if (unused == sequences_.end()) sequences_.emplace_back();
  sequences_[sequence] = {.life = Life::kLive, .used = ++uses_};
  return sequence;
}

void Contexts::remove(int sequence) {
  truncate(sequence, 0);
  sequences_[sequence].life = Life::kNone;
}

bool Contexts::retire(int sequence) {
  Sequence& s = sequences_[sequence];
  if (s.tokens.empty() || find(s.tokens, sequence).length == length(sequence)) {
    remove(sequence);
    return false;
  }
  for (const int cell : s.cells) {
    if (--cells_[cell].live_holders == 0) --held_by_live_;
  }
  s.life = Life::kRetired;
  s.used = ++uses_;
  return true;
}

bool Contexts::is_live(int sequence) const {
  return sequence >= 0 && sequence < static_cast<int>(sequences_.size()) &&
         sequences_[sequence].life == Life::kLive;
}

void Contexts::append(int sequence, Token token) {
  if (free_cells_.empty()) {
    free_cells_.push_back(static_cast<int>(cells_.size()));
    cells_.emplace_back();
  }
  const int cell = free_cells_.back();
  free_cells_.pop_back();
  hold(cell, /*live=*/true);
  sequences_[sequence].tokens.push_back(token);
  sequences_[sequence].cells.push_back(cell);
}

void Contexts::truncate(int sequence, int length) {
  Sequence& s = sequences_[sequence];
  while (static_cast<int>(s.tokens.size()) > length) {
    let_go(s.cells.back(), s.life == Life::kLive);
    s.cells.pop_back();
    s.tokens.pop_back();
  }
}

Contexts::Match Contexts::find(std::span<const Token> tokens, int other_than,
                               bool retired_alone) const {
  Match best;
  for (int other = 0; other < static_cast<int>(sequences_.size()); ++other) {
    const Life life = sequences_[other].life;
    if (other == other_than || life == Life::kNone) continue;
    if (retired_alone && life != Life::kRetired) continue;
    const int common = common_prefix(sequences_[other].tokens, tokens);
    if (common > best.length) best = {other, common};
  }
  return best;
}

void Contexts::share(int from, int to, int length) {
  truncate(to, 0);
  Sequence& source = sequences_[from];
  Sequence& target = sequences_[to];
  source.used = ++uses_;
  target.tokens.assign(source.tokens.begin(), source.tokens.begin() + length);
  target.cells.assign(source.cells.begin(), source.cells.begin() + length);
  for (const int cell : target.cells) hold(cell, /*live=*/true);
}

std::optional<int> Contexts::oldest_retired() const {
  std::optional<int> oldest;
  for (int i = 0; i < static_cast<int>(sequences_.size()); ++i) {
    if (sequences_[i].life != Life::kRetired) continue;
    if (!oldest || sequences_[i].used < sequences_[*oldest].used) oldest = i;
  }
  return oldest;
}

std::vector<int> Contexts::retired_beginnings(std::span<const Token> tokens) const {
  std::vector<int> found;
  for (int i = 0; i < static_cast<int>(sequences_.size()); ++i) {
    if (sequences_[i].life != Life::kRetired) continue;
    if (common_prefix(sequences_[i].tokens, tokens) == length(i)) found.push_back(i);
  }
  return found;
}

void Contexts::hold(int cell, bool live) {
  if (cells_[cell].holders++ == 0) ++held_;
  if (live && cells_[cell].live_holders++ == 0) ++held_by_live_;
}

void Contexts::let_go(int cell, bool live) {
  if (live && --cells_[cell].live_holders == 0) --held_by_live_;
  if (--cells_[cell].holders > 0) return;
  --held_;
  free_cells_.push_back(cell);
}

}  // namespace firp
