#pragma once

#include <optional>
#include <span>
#include <vector>

#include "model/vocabulary.h"

namespace firp {

/// What the sequences of an engine hold: the tokens of their committed contexts, and which
/// positions they hold in common. A sequence that is retired takes part in no pass any more, but
/// what it holds stays to be found, until it is removed.
class Contexts {
 public:
  int add();  ///< the lowest free number
  void remove(int sequence);
  /// False where nothing would be found that others do not hold as well: it is removed, then.
  bool retire(int sequence);

  bool is_live(int sequence) const;  ///< neither removed nor retired
  std::span<const Token> tokens(int sequence) const { return sequences_[sequence].tokens; }
  int length(int sequence) const { return static_cast<int>(sequences_[sequence].tokens.size()); }

  void append(int sequence, Token token);
  void truncate(int sequence, int length);

  /// Of what other sequences (or only retired ones) hold, the longest beginning of `tokens`.
  struct Match {
    int sequence = -1;
    int length = 0;
  };
  Match find(std::span<const Token> tokens, int other_than, bool retired_alone = false) const;
  /// `to` holds the first `length` positions of `from`, and nothing else.
  void share(int from, int to, int length);

  /// Positions that are held; what several hold in common counts once.
  int held() const { return held_; }
  int held_by_live() const { return held_by_live_; }
  /// The retired sequence that was found, or retired, the longest time ago.
  std::optional<int> oldest_retired() const;
  /// The retired sequences that hold a beginning of `tokens`, and nothing else.
  std::vector<int> retired_beginnings(std::span<const Token> tokens) const;

 private:
  enum class Life { kNone, kLive, kRetired };
  struct Sequence {
    Life life = Life::kNone;
    unsigned long long used = 0;
    std::vector<Token> tokens;
    std::vector<int> cells;  ///< [tokens.size()]: what a position is held in
  };
  struct Cell {
    int holders = 0;  ///< 0: free
    int live_holders = 0;
  };

  void hold(int cell, bool live);
  void let_go(int cell, bool live);

  std::vector<Sequence> sequences_;
  std::vector<Cell> cells_;
  std::vector<int> free_cells_;
  int held_ = 0, held_by_live_ = 0;
  unsigned long long uses_ = 0;
};

}  // namespace firp
