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

/// Of a prompt that came in the field `field`; a BOS is in front where the file asks for one. A
/// RequestError for what cannot be tokenized, or has more bytes than the context can stand for.
std::vector<Token> tokens_of(const char* field, const Vocabulary& vocabulary, const Prompt& prompt,
                             int context);
/// `tokens`: of the prompt; null where they were not counted.
[[noreturn]] void refuse_length(const char* field, const std::string& message, int context,
                                Json tokens);

/// The prompt as the template writes it.
WrittenChat written_chat(const TextRequest& request, const ChatTemplate& chat_template);

}  // namespace firp
