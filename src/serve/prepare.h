#pragma once

#include <optional>
#include <string>
#include <vector>

#include "chat/chat_template.h"
#include "serve/request.h"
#include "serve/scheduler.h"

namespace firp {

/// A request as the scheduler and the writers of replies need it.
struct PreparedRequest {
  TextRequest request;                  ///< its biases are those of tokens
  std::vector<Generation> generations;  ///< all answers to the first prompt first
  std::vector<std::string> prompts;     ///< as text
  std::optional<ReplyReader> reader;    ///< of chats
};

/// `context`: tokens that prompt and answer may have together. A RequestError for what does not
/// fit, or what the chat template or the grammar refuses.
PreparedRequest prepare(TextRequest request, const ChatTemplate& chat_template, int context);

/// The prompt as the template writes it.
WrittenChat written_chat(const TextRequest& request, const ChatTemplate& chat_template);

}  // namespace firp
