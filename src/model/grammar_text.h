#pragma once

#include <string>
#include <vector>

#include "model/vocabulary.h"

namespace firp {

/// A grammar for what the model writes, in GBNF (llama.cpp's grammars/README.md).
struct GrammarText {
  std::string gbnf;         ///< its first rule is "root"; empty: none
  std::vector<Token> read;  ///< what it has read when the answer begins
  /// It holds from where one of these comes, as tool calls do in a free text; none: from the start.
  std::vector<std::string> words;
  std::vector<std::string> patterns;  ///< regular expressions; it begins with their first group, or
                                      ///< with all that they match

  bool is_lazy() const { return !words.empty() || !patterns.empty(); }
};

}  // namespace firp
