#pragma once

#include <array>
#include <deque>
#include <unordered_map>

#include "draft/source.h"

namespace firp {

/// Lookahead decoding (Fu et al., arXiv 2402.02057): every verifying pass also runs a window of
/// guesses at the tokens ahead, which get better from pass to pass (Jacobi iteration); the n-grams
/// that they make on their way are the drafts.
///
/// The window's rows, level by level, for kWindow = 3 and kNgram = 4:
///     root - a0 - a1 - a2      a row's parent is to its left in level 0,
///             |    |    |      and above it in the others
///            b0   b1   b2
///            c0   c1   c2      what the model gives behind c_i ends the n-gram a_i b_i c_i .
class LookaheadSource : public DraftSource {
 public:
  // Rows are dear on a CPU: a third of the paper's window for GPUs.
  static constexpr int kWindow = 5, kNgram = 4;
  static constexpr int kNgramsAToken = 5;  ///< kept, and verified in a pass: the latest
  static constexpr int kMostNodes = kNgramsAToken * (kNgram - 1);

  explicit LookaheadSource(Engine& engine) : engine_(engine) {}

  bool drafts_in_pass() const override { return true; }
  int rows_a_pass(int nodes) const override { return 1 + nodes + kWindow * kLevels; }
  void add_rows(std::vector<Row>& rows, int root, std::span<const Token> tokens) override;
  std::vector<Row> prepare(const Pass& verified, const DraftPoint& point) override;
  DraftTree draft(const DraftPoint& point, const Proposal* proposal) override;

 private:
  static constexpr int kLevels = kNgram - 1;
  using Ngram = std::array<Token, kLevels>;  ///< without its first token

  Engine& engine_;
  std::array<std::array<Token, kWindow>, kLevels> window_{};
  bool begun_ = false;
  int first_row_ = -1;  ///< of the window in the last pass; -1: it had no room there
  std::unordered_map<Token, std::deque<Ngram>> pool_;  ///< by the first token, the latest in front
};

}  // namespace firp
