#include "decode/conversation.h"

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

Conversation::Conversation(const Vocabulary& vocabulary, std::string system_prompt)
    : vocabulary_(&vocabulary) {
  if (!system_prompt.empty()) messages_.push_back({"system", std::move(system_prompt)});
}

std::vector<Token> Conversation::user_turn(std::string_view text) {
  const bool first = turns_++ == 0;
  if (!vocabulary_->has_chat_template()) {
    return vocabulary_->tokenize(first ? std::string(text) : "\n\n" + std::string(text), first);
  }
  if (text.find(kAnswer) != std::string_view::npos) {
    throw Error("a message holds control characters that stand for an answer here");
  }
  messages_.push_back({"user", std::string(text)});
  PromptText written = vocabulary_->apply_chat_template(messages_, /*open_answer=*/true);
  messages_.push_back({"assistant", std::string(kAnswer)});
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
  return vocabulary_->tokenize(written, /*add_bos=*/first);
}

}  // namespace firp
