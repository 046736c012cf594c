#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "model/vocabulary.h"

namespace firp {

/// Turns what a user says into the tokens to append to a session, by the model's chat template. The
/// answers are not tokenised again: their tokens stay those that the model chose.
class Conversation {
 public:
  /// `vocabulary` must outlive the conversation.
  explicit Conversation(const Vocabulary& vocabulary, std::string system_prompt = "");

  /// What lies between the end of the last answer (or the start) and the answer to `text`. A model
  /// without a chat template gets the bare text, set off by an empty line.
  std::vector<Token> user_turn(std::string_view text);

 private:
  const Vocabulary* vocabulary_;
  std::vector<ChatMessage> messages_;
  int turns_ = 0;
};

}  // namespace firp
