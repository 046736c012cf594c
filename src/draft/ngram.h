#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "draft/draft_tree.h"

namespace firp {

/// Drafts from the text itself (prompt lookup): what followed when the last few tokens stood there
/// before. Costs nothing, and is right where text repeats itself: names, quotations, code.
class NgramSource {
 public:
  static constexpr int kMostTokens = 10;   ///< of a draft
  static constexpr int kLongestMatch = 8;  ///< longer ones count as this long

  /// What may follow `text`, the most recent longest match of its last 2 tokens or more, as one
  /// path; the probabilities are those that matches of their length have shown so far. At most
  /// `most_tokens` long. `text` grows from call to call, or has been cut.
  DraftTree draft(std::span<const Token> text, int most_tokens);

  /// The tokens that came where the last draft stood.
  void observe(std::span<const Token> came);

 private:
  std::vector<Token> indexed_;  ///< the text whose n-grams are in `ends_`
  /// Where an n-gram, by its hash, ended last.
  std::unordered_map<std::uint64_t, int> ends_;
  DraftTree last_;
  int last_match_ = 0;
  /// [tokens that match]: how often the next token did, too. A first guess, soon forgotten.
  std::array<double, kLongestMatch + 1> hit_rate_ = {0, 0, 0.3, 0.45, 0.55, 0.65, 0.7, 0.75, 0.8};
};

/// Adds a path to a tree; a token that both have behind the same tokens becomes one node, of the
/// larger probability. The result is in descending order of probability, as a DraftTree is.
DraftTree join(const DraftTree& tree, const DraftTree& path);

}  // namespace firp
