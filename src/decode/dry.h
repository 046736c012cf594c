#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/row.h"
#include "model/vocabulary.h"

namespace firp {

/// What the tokens of a vocabulary read as, control tokens too.
using TokenTexts = std::shared_ptr<const std::vector<std::string>>;
TokenTexts token_texts(const Vocabulary& vocabulary);

/// "Don't repeat yourself": the longer the end of a text repeats an earlier part of it, the less
/// likely becomes the token that went on there. Names, values and meanings as in llama.cpp.
struct DryOptions {
  float multiplier = 0;     ///< 0: off
  float base = 1.75f;       ///< at least 1: of the penalty, multiplier * base ^
  int allowed_length = 2;   ///< (tokens that are repeated - these)
  int penalty_last_n = 64;  ///< tokens that are looked at; 0: off; less: all
  /// No repetition reaches over one of them; found over the bounds of tokens, too.
  std::vector<std::string> sequence_breakers = {"\n", ":", "\"", "*"};
  TokenTexts texts = nullptr;  ///< to find them in; nullptr: nothing breaks

  bool is_on() const { return multiplier != 0 && penalty_last_n != 0; }
};

/// Tokens behind `history`, and what is to be taken from their logits.
std::vector<TokenLogit> dry_penalties(std::span<const Token> history, const DryOptions& options);

}  // namespace firp
