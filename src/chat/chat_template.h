#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "model/grammar_text.h"
#include "model/vocabulary.h"

// Chat templates, tool calls and reasoning by llama.cpp's own library llama-common, built from the
// same source as libllama (scripts/setup.sh). Its interface is not stable: chat_template.cpp alone
// speaks to it, and chat_template_test.cpp holds what is relied on.

namespace firp {

enum class ToolChoice { kAuto, kRequired, kNone };

/// Where the model's reasoning goes: kNone leaves it in the text, kApart sets it apart.
enum class ReasoningFormat { kNone, kApart };

/// A conversation that the model is to go on with.
struct ChatInput {
  nlohmann::ordered_json messages;  ///< as OpenAI's clients write them
  nlohmann::ordered_json tools;     ///< the same; null: none
  ToolChoice tool_choice = ToolChoice::kAuto;
  bool parallel_tool_calls = false;
  std::string json_schema;        ///< that the answer is to follow; empty: none
  std::string grammar;            ///< in GBNF, likewise
  bool open_answer = true;        ///< ends with the start of the assistant's turn
  bool continues_answer = false;  ///< goes on with the last message, which is the assistant's
  bool thinks = true;             ///< where the template can turn thinking on and off
  ReasoningFormat reasoning = ReasoningFormat::kApart;
  std::map<std::string, nlohmann::ordered_json> variables;  ///< of the template, by name
};

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  ///< JSON
};

/// An answer, taken apart.
struct ChatReply {
  std::string content;
  std::string reasoning;
  std::vector<ToolCall> tool_calls;
};

/// Takes the model's text apart, as its template puts answers together.
class ReplyReader {
 public:
  struct Syntax;
  explicit ReplyReader(std::shared_ptr<const Syntax> syntax) : syntax_(std::move(syntax)) {}

  /// `text`: all that came so far; `complete`: and nothing more will. A text that is nothing of
  /// what the template writes is all content: no text is lost. An exception where it is not
  /// complete, and makes no sense yet.
  ChatReply read(std::string_view text, bool complete) const;

 private:
  std::shared_ptr<const Syntax> syntax_;
};

/// A conversation as the template writes it, and what the model's answer is to be read with.
struct WrittenChat {
  PromptText prompt;  ///< control tokens that the messages hold are literal
  GrammarText grammar;
  std::vector<std::string> stops;   ///< besides the end tokens
  std::vector<Token> shown_tokens;  ///< control tokens whose text the reader needs
  ReplyReader reader;
};

/// A model's chat template: the file's own, in Jinja, or another one in its place.
class ChatTemplate {
 public:
  /// llama.cpp's templates that have a name. But for chatml they have no words for tools, and
  /// cannot go on with an answer.
  static std::vector<std::string> names();

  /// `vocabulary` must outlive the template. `source`: Jinja, or one of names(); empty: the file's
  /// own.
  explicit ChatTemplate(const Vocabulary& vocabulary, const std::string& source = "");
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;

  const Vocabulary& vocabulary() const;
  bool exists() const;  ///< the file has one, or one was given
  /// Why it cannot be written; empty: it can.
  const std::string& problem() const;
  std::string source() const;
  /// What the template can do, by llama.cpp's names.
  std::map<std::string, bool> capabilities() const;

  /// An Error where there is a problem(), or for what the template refuses, and for tools and
  /// schemas that make no sense.
  WrittenChat write(const ChatInput& input) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firp
