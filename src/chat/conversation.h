#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "chat/chat_template.h"

namespace firp {

/// Turns what a user says into the tokens to append to a session, by the chat template. The
/// answers are not tokenised again: their tokens stay those that the model chose.
class Conversation {
 public:
  /// `chat_template` must outlive the conversation.
  explicit Conversation(const ChatTemplate& chat_template, const std::string& system_prompt = "");

  /// What lies between the end of the last answer (or the start) and the answer to `text`. A model
  /// without a chat template gets the bare text, set off by an empty line.
  std::vector<Token> user_turn(std::string_view text);

 private:
  const ChatTemplate* template_;
  nlohmann::ordered_json messages_ = nlohmann::ordered_json::array();
  int turns_ = 0;
};

}  // namespace firp
