#include "chat/conversation.h"

#include <utility>

#include "base/error.h"

namespace firp {
namespace {

// Stands for an answer in the template's text: what follows the last one is new.
constexpr std::string_view kAnswer =
    "\x01"
    "answer"
    "\x02";

}  // namespace

Conversation::Conversation(const ChatTemplate& chat_template, const std::string& system_prompt)
    : template_(&chat_template) {
  if (!system_prompt.empty()) {
    messages_.push_back({{"role", "system"}, {"content", system_prompt}});
  }
}

std::vector<Token> Conversation::user_turn(std::string_view text) {
  const bool first = turns_++ == 0;
  const Vocabulary& vocabulary = template_->vocabulary();
  if (!template_->exists()) {
    return vocabulary.tokenize(first ? std::string(text) : "\n\n" + std::string(text), first);
  }
  if (text.find(kAnswer) != std::string_view::npos) {
    throw Error("a message holds control characters that stand for an answer here");
  }
  require_utf8(text, "a message");
  messages_.push_back({{"role", "user"}, {"content", text}});
  PromptText written = template_->write({.messages = messages_}).prompt;
  messages_.push_back({{"role", "assistant"}, {"content", kAnswer}});
  if (!first) {
    const std::size_t answer = written.text.rfind(kAnswer);
    if (answer == std::string::npos) {
      throw Error("the model's chat template drops earlier answers: only one turn is possible");
    }
    const std::size_t known = answer + kAnswer.size();
    written.text.erase(0, known);
    std::erase_if(written.literal, [&](const TextRange& range) { return range.begin < known; });
    for (TextRange& range : written.literal) {
      range.begin -= known;
      range.end -= known;
    }
  }
  return vocabulary.tokenize(written, /*add_bos=*/first);
}

}  // namespace firp
