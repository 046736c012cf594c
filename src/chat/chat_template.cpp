#include "chat/chat_template.h"

#include <chat.h>
#include <fmt/format.h>
#include <llama.h>
#include <log.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <regex>
#include <utility>

#include "base/error.h"
#include "model/ggml_log.h"

namespace firp {
namespace {

using Json = nlohmann::ordered_json;

/// Of a template: llama-common's parser calls itself once a bracket.
constexpr std::size_t kMostTemplateBytes = std::size_t{1} << 20;
constexpr int kMostNestedBrackets = 500;

int nested_brackets(std::string_view text) {
  int depth = 0, most = 0;
  for (const char byte : text) {
    if (byte == '(' || byte == '[' || byte == '{') most = std::max(most, ++depth);
    if ((byte == ')' || byte == ']' || byte == '}') && depth > 0) --depth;
  }
  return most;
}

void for_each_string(Json& value, const std::function<void(std::string&)>& change) {
  if (value.is_string()) change(value.get_ref<std::string&>());
  if (!value.is_structured()) return;
  for (Json& each : value) for_each_string(each, change);
}

/// The text of control tokens that messages and tools hold waits outside while the template is
/// written: that tells somebody's words from the template's own. In its place stands a number
/// between two marks of letters and digits, which no filter of a template changes.
class OutsideTexts {
 public:
  /// `elsewhere`: texts that must not hold the mark.
  OutsideTexts(const Vocabulary& vocabulary, Json& messages, Json& tools,
               const std::string& elsewhere) {
    const std::string all = messages.dump(-1, ' ', false, Json::error_handler_t::replace) +
                            tools.dump(-1, ' ', false, Json::error_handler_t::replace) + elsewhere;
    for (int i = 0; mark_.empty() || all.find(mark_) != std::string::npos; ++i) {
      mark_ = fmt::format("Zq{}Qz", i);
    }
    const auto take = [&](std::string& text) {
      std::string kept;
      std::size_t at = 0;
      for (const TextRange& range : vocabulary.control_texts(text)) {
        kept.append(text, at, range.begin - at);
        kept += fmt::format("{}{}{}", mark_, texts_.size(), mark_);
        texts_.push_back(text.substr(range.begin, range.end - range.begin));
        at = range.end;
      }
      if (at > 0) text = kept.append(text, at);
    };
    for_each_string(messages, take);
    for_each_string(tools, take);
  }

  /// `written` with all texts back in their places, literal.
  PromptText back(const std::string& written) const {
    PromptText prompt;
    std::size_t at = 0;
    while (!texts_.empty()) {
      const std::size_t open = written.find(mark_, at);
      if (open == std::string::npos) break;
      const std::size_t number = open + mark_.size();
      const std::size_t close = written.find(mark_, number);
      const std::string& text = texts_.at(std::stoul(written.substr(number, close - number)));
      prompt.text.append(written, at, open - at);
      prompt.literal.push_back({prompt.text.size(), prompt.text.size() + text.size()});
      prompt.text += text;
      at = close + mark_.size();
    }
    prompt.text.append(written, at);
    return prompt;
  }

 private:
  std::string mark_;
  std::vector<std::string> texts_;
};

common_chat_tool_choice choice_of(ToolChoice choice) {
  switch (choice) {
    case ToolChoice::kRequired:
      return COMMON_CHAT_TOOL_CHOICE_REQUIRED;
    case ToolChoice::kNone:
      return COMMON_CHAT_TOOL_CHOICE_NONE;
    case ToolChoice::kAuto:
      break;
  }
  return COMMON_CHAT_TOOL_CHOICE_AUTO;
}

common_reasoning_format format_of(ReasoningFormat format) {
  return format == ReasoningFormat::kNone ? COMMON_REASONING_FORMAT_NONE
                                          : COMMON_REASONING_FORMAT_DEEPSEEK;
}

/// The token that is all of `text`, if there is one.
std::optional<Token> token_of(const Vocabulary& vocabulary, const std::string& text) {
  const std::vector<Token> tokens = vocabulary.tokenize(text, /*add_bos=*/false);
  return tokens.size() == 1 ? std::optional(tokens.front()) : std::nullopt;
}

/// llama-common lets a text of any length come before a call, even where one is required; small
/// models write nothing else. Thoughts keep their place.
std::string without_words_before_calls(std::string gbnf) {
  static const std::regex words(R"(\buntil-\d+\? )");
  const std::string name = "root ::= ";
  const std::size_t begin = gbnf.starts_with(name) ? 0 : gbnf.find("\n" + name);
  if (begin == std::string::npos) return gbnf;
  const std::size_t size = std::min(gbnf.find('\n', begin + 1), gbnf.size()) - begin;
  return gbnf.replace(begin, size, std::regex_replace(gbnf.substr(begin, size), words, ""));
}

/// Of tools or a schema.
GrammarText grammar_of(const Vocabulary& vocabulary, const common_chat_params& written) {
  GrammarText grammar = {.gbnf = written.grammar};
  if (!written.grammar_lazy) {
    // It has read what the template put before the answer.
    grammar.read = vocabulary.tokenize(written.generation_prompt, /*add_bos=*/false);
    return grammar;
  }
  for (const common_grammar_trigger& trigger : written.grammar_triggers) {
    switch (trigger.type) {
      case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:
        grammar.words.push_back(vocabulary.piece(trigger.token, /*show_special=*/true));
        break;
      case COMMON_GRAMMAR_TRIGGER_TYPE_WORD:
        grammar.words.push_back(trigger.value);
        break;
      case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:
        grammar.patterns.push_back(trigger.value);
        break;
      case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL:
        grammar.patterns.push_back("^(?:" + trigger.value + ")$");
        break;
    }
  }
  return grammar;
}

}  // namespace

struct ReplyReader::Syntax {
  common_chat_parser_params parameters;
  ChatReply known = {};  ///< what the template wrote of the answer: it is no news
};

namespace {

std::string without_known(std::string text, const std::string& known) {
  if (text.starts_with(known)) text.erase(0, known.size());
  return text;
}

}  // namespace

ChatReply ReplyReader::read(std::string_view text, bool complete) const {
  common_chat_msg message;
  try {
    message = common_chat_parse(std::string(text), !complete, syntax_->parameters);
  } catch (const std::exception&) {
    if (complete) return {.content = std::string(text), .reasoning = {}, .tool_calls = {}};
    throw;
  }
  ChatReply reply = {
      .content = without_known(message.render_content(), syntax_->known.content),
      .reasoning = without_known(std::move(message.reasoning_content), syntax_->known.reasoning),
      .tool_calls = {}};
  for (const common_chat_tool_call& call : message.tool_calls) {
    reply.tool_calls.push_back({call.id, call.name, call.arguments});
  }
  return reply;
}

struct ChatTemplate::State {
  const Vocabulary& vocabulary;
  bool exists = false;
  bool is_named = false;  ///< libllama writes it, by its name
  common_chat_templates_ptr templates = nullptr;
  std::string problem = {};  ///< why there are none
};

std::vector<std::string> ChatTemplate::names() {
  std::vector<const char*> names(llama_chat_builtin_templates(nullptr, 0));
  llama_chat_builtin_templates(names.data(), names.size());
  return {names.begin(), names.end()};
}

ChatTemplate::ChatTemplate(const Vocabulary& vocabulary, const std::string& source)
    : state_(std::make_unique<State>(State{vocabulary})) {
  common_log_set_verbosity_thold(-1);  // what matters comes as an exception
  const char* const own = llama_model_chat_template(vocabulary.model(), nullptr);
  const bool is_own = source.empty() && own != nullptr;
  const auto text = is_own ? std::string_view(own) : std::string_view(source);
  state_->exists = !text.empty();
  // chatml is there in Jinja, too.
  state_->is_named = source != "chatml" && std::ranges::count(names(), source) > 0;
  if (text.empty()) {
    state_->problem = "this model has no chat template";
  } else if (text.size() > kMostTemplateBytes || nested_brackets(text) > kMostNestedBrackets) {
    state_->problem =
        fmt::format("the chat template is too large ({} bytes), or nested too deeply", text.size());
  } else {
    try {
      state_->templates = common_chat_templates_init(vocabulary.model(), source);
    } catch (const std::exception& error) {
      state_->problem = fmt::format("the chat template cannot be read: {}", one_line(error.what()));
    }
  }
}

ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;

const Vocabulary& ChatTemplate::vocabulary() const { return state_->vocabulary; }
bool ChatTemplate::exists() const { return state_->exists; }
const std::string& ChatTemplate::problem() const { return state_->problem; }

std::string ChatTemplate::source() const {
  return state_->templates ? common_chat_templates_source(state_->templates.get()) : "";
}

std::map<std::string, bool> ChatTemplate::capabilities() const {
  if (!state_->templates) return {};
  return common_chat_templates_get_caps(state_->templates.get());
}

WrittenChat ChatTemplate::write(const ChatInput& input) const {
  const State& s = *state_;
  if (!s.templates) throw Error(s.problem);
  if (s.is_named && input.continues_answer) {
    throw Error(fmt::format("the chat template {} cannot go on with an answer: one in Jinja can",
                            source()));
  }
  Json messages = input.messages;
  Json tools = input.tools;
  const OutsideTexts outside(s.vocabulary, messages, tools, source());
  common_chat_params written;
  try {
    const auto parsed = [](const Json& json) { return common_json::parse(json.dump()); };
    common_chat_templates_inputs inputs;
    inputs.use_jinja = !s.is_named;
    inputs.messages = common_chat_msgs_parse_oaicompat(parsed(messages));
    if (!tools.is_null()) inputs.tools = common_chat_tools_parse_oaicompat(parsed(tools));
    inputs.tool_choice = choice_of(input.tool_choice);
    inputs.parallel_tool_calls = input.parallel_tool_calls;
    inputs.json_schema = input.json_schema;
    inputs.grammar = input.grammar;
    inputs.add_generation_prompt = input.open_answer && !input.continues_answer;
    if (input.continues_answer) inputs.continue_final_message = COMMON_CHAT_CONTINUATION_AUTO;
    inputs.reasoning_format = format_of(input.reasoning);
    inputs.enable_thinking = input.thinks;
    for (const auto& [name, value] : input.variables) {
      inputs.chat_template_kwargs[name] = value.dump();
    }
    // Templates may tell the date, which std::localtime() keeps in memory that all threads share.
    static std::mutex clock;
    const std::lock_guard lock(clock);
    written = common_chat_templates_apply(s.templates.get(), inputs);
  } catch (const std::exception& error) {
    throw Error(one_line(error.what()));
  }

  const bool must_call = !tools.is_null() && input.tool_choice == ToolChoice::kRequired;
  if (must_call && written.grammar.empty()) {
    throw Error("this model's chat template has no words for tools: none can be required");
  }
  if (must_call) written.grammar = without_words_before_calls(written.grammar);
  // They may be in grammar and parser, too, as a value that a tool's argument can have.
  written.grammar = outside.back(written.grammar).text;
  written.parser = outside.back(written.parser).text;
  auto syntax = std::make_shared<ReplyReader::Syntax>();
  syntax->parameters = common_chat_parser_params(written);
  syntax->parameters.reasoning_format = format_of(input.reasoning);
  if (!written.parser.empty()) syntax->parameters.parser.load(written.parser);
  if (input.continues_answer) {
    syntax->known = ReplyReader(syntax).read("", /*complete=*/false);
  }
  WrittenChat chat = {.prompt = outside.back(written.prompt),
                      .grammar = input.grammar.empty() ? grammar_of(s.vocabulary, written)
                                                       : GrammarText{.gbnf = input.grammar},
                      .stops = written.additional_stops,
                      .shown_tokens = {},
                      .reader = ReplyReader(syntax)};
  for (const std::string& text : written.preserved_tokens) {
    if (const std::optional<Token> token = token_of(s.vocabulary, text)) {
      chat.shown_tokens.push_back(*token);
    }
  }
  return chat;
}

}  // namespace firp
