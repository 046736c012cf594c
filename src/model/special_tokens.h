#pragma once

#include <llama.h>

#include <bitset>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/vocabulary.h"

namespace firp {

/// The tokens that are cut out of a text before the rest is split into words: control tokens, those
/// for what is unknown, and what a file's makers defined. A text is cut as libllama cuts it, the
/// longest tokens first, but in time that grows with the text alone.
class SpecialTokens {
 public:
  /// `vocabulary` must outlive this. `chat_template`: the file's own; what its makers defined and
  /// it writes are control tokens, too, whatever the file calls them.
  SpecialTokens(const llama_vocab* vocabulary, std::string_view chat_template);

  struct Piece {
    std::string_view text;
    Token token;  ///< LLAMA_TOKEN_NULL: none, the text is still to be split
  };
  /// `text` as a row of pieces; white space that a token takes from its neighbours is in none.
  /// Control tokens that touch a range of `literal` stay text.
  std::vector<Piece> split(std::string_view text, std::span<const TextRange> literal) const;

  /// All bytes of `text` that belong to the text of a control token.
  std::vector<TextRange> control_texts(std::string_view text) const;

 private:
  struct Special {
    std::string_view text;
    Token token;
    bool control;       ///< or unknown: not to be parsed in literal text
    bool user_defined;  ///< libllama finds it in any text
    bool strips_left, strips_right;
  };
  /// All tokens of a length, and what the first and the last byte of one can be.
  struct Length {
    std::size_t bytes;
    std::unordered_map<std::string_view, std::size_t> specials;
    std::bitset<256> first, last;
  };
  /// Calls found(begin, special) wherever the text of a special token is, from left to right.
  template <typename Found>
  static void find(const Length& length, std::string_view text, Found found);

  std::vector<Special> specials_;  ///< in the order in which they are cut out
  std::vector<Length> lengths_;    ///< from the longest to the shortest
};

}  // namespace firp
