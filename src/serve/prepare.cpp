#include "serve/prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "chat/json_schema.h"

namespace firp {
namespace {

/// The field that a prompt comes from.
const char* field_of(const TextRequest& request) {
  if (request.infill) return "input_prefix";
  return request.chat ? "messages" : "prompt";
}

void require_fits(const char* field, const Vocabulary& vocabulary, std::size_t bytes, int context) {
  try {
    vocabulary.require_fits(bytes, context);
  } catch (const Error& error) {
    refuse_length(field, error.what(), context, /*tokens=*/nullptr);
  }
}

std::vector<Token> tokens_of(const char* field, const Vocabulary& vocabulary,
                             const PromptText& text) {
  try {
    return vocabulary.tokenize(text, /*add_bos=*/true);
  } catch (const Error& error) {
    throw RequestError(kInvalidValue, error.what(), field);
  }
}

/// As the makers of such models wrote it: other files, then what is before, what is after, and the
/// mark of what is between. The texts are somebody's words.
std::vector<Token> infill_tokens(const TextRequest& request, const Vocabulary& vocabulary,
                                 int context) {
  const Infill& infill = *request.infill;
  const Vocabulary::InfillTokens marks = vocabulary.infill_tokens();
  if (marks.prefix == kNoToken || marks.suffix == kNoToken || marks.middle == kNoToken) {
    throw RequestError(kNotImplemented, "this model has no tokens for filling in (FIM)");
  }
  std::size_t bytes = infill.prefix.size() + infill.suffix.size() + infill.prompt.size();
  for (const Infill::File& file : infill.extra) bytes += file.name.size() + file.text.size();
  require_fits(field_of(request), vocabulary, bytes, context);

  std::vector<Token> tokens;
  const auto add = [&](const std::string& text) {
    const PromptText words = {text, {{0, text.size()}}};
    const std::vector<Token> more = vocabulary.tokenize(words, /*add_bos=*/false);
    tokens.insert(tokens.end(), more.begin(), more.end());
  };
  const auto begin_file = [&](const std::string& name) {
    if (marks.file != kNoToken) {
      tokens.push_back(marks.file);
      add(name + "\n");
    } else {
      add("\n\n--- " + name + " ---\n\n");
    }
  };
  if (!infill.extra.empty()) {
    if (marks.repository != kNoToken) {
      tokens.push_back(marks.repository);
      add("myproject\n");
    }
    for (const Infill::File& file : infill.extra) {
      begin_file(file.name.empty() ? "tmp" : file.name);
      add(file.text);
    }
    if (marks.file != kNoToken) begin_file("filename");
  }
  tokens.push_back(marks.prefix);
  add(infill.prefix);
  tokens.push_back(marks.suffix);
  add(infill.suffix);
  tokens.push_back(marks.middle);
  add(infill.prompt);
  return tokens;
}

std::size_t bytes_of(const Json& value) {
  if (value.is_string()) return value.get_ref<const std::string&>().size();
  std::size_t bytes = 0;
  for (const Json& each : value.is_structured() ? value : Json::array()) bytes += bytes_of(each);
  return bytes;
}

std::shared_ptr<const Grammar> read_grammar(const Vocabulary& vocabulary, const GrammarText& text) {
  if (text.gbnf.empty()) return nullptr;
  try {
    return std::make_shared<const Grammar>(vocabulary, text);
  } catch (const Error& error) {
    throw RequestError(kInvalidValue, error.what(), "grammar");
  }
}

/// Of requests that are no chats.
GrammarText grammar_of(const TextRequest& request) {
  if (request.json_schema.empty()) return {.gbnf = request.grammar};
  try {
    return {.gbnf = grammar_of_schema(request.json_schema)};
  } catch (const Error& error) {
    throw RequestError(kInvalidValue, error.what(), "json_schema");
  }
}

/// What is asked for in words, in tokens.
void set_biases(TextRequest& request, const Vocabulary& vocabulary) {
  for (const auto& [text, bias] : request.text_biases) {
    for (const Token token : vocabulary.tokenize(PromptText{text}, /*add_bos=*/false)) {
      request.sampling.logit_bias.push_back({token, bias});
    }
  }
  if (request.ignore_eos) forbid(request.sampling, vocabulary.end_tokens());
}

}  // namespace

void refuse_length(const char* field, const std::string& message, int context, Json tokens) {
  Json more = {{"n_ctx", context}};
  if (!tokens.is_null()) more["n_prompt_tokens"] = std::move(tokens);
  throw RequestError(
      kContextExceeded,
      fmt::format("{}; this exceeds the available context size: this model's maximum context "
                  "length is {} tokens here (firp serve -c)",
                  message, context),
      field, std::move(more));
}

std::vector<Token> tokens_of(const char* field, const Vocabulary& vocabulary, const Prompt& prompt,
                             int context) {
  std::vector<Token> tokens;
  for (const PromptPart& part : prompt) {
    if (const auto* const given = std::get_if<std::vector<Token>>(&part)) {
      tokens.insert(tokens.end(), given->begin(), given->end());
      continue;
    }
    const auto& text = std::get<std::string>(part);
    require_fits(field, vocabulary, text.size(), context);
    // Only in front of all.
    const std::vector<Token> more = tokens.empty() ? tokens_of(field, vocabulary, PromptText{text})
                                                   : vocabulary.tokenize(text, /*add_bos=*/false);
    tokens.insert(tokens.end(), more.begin(), more.end());
  }
  return tokens;
}

WrittenChat written_chat(const TextRequest& request, const ChatTemplate& chat_template) {
  if (!chat_template.problem().empty()) {
    throw RequestError(kUnsupported, chat_template.problem() + "; ask /v1/completions");
  }
  try {
    return chat_template.write(*request.chat);
  } catch (const Error& error) {
    throw RequestError(kInvalidValue, error.what(), "messages");
  }
}

PreparedRequest prepare(TextRequest asked, const ChatTemplate& chat_template, int context) {
  const Vocabulary& vocabulary = chat_template.vocabulary();
  set_biases(asked, vocabulary);
  PreparedRequest prepared = {.request = std::move(asked)};
  const TextRequest& request = prepared.request;
  Generation generation = {.prompt = {},
                           .sampling = request.sampling,
                           .likeliest = request.tried > request.answers
                                            ? std::max(request.likeliest, 0)
                                            : request.likeliest,
                           .after_sampling = request.after_sampling,
                           .tells_prompt = request.tells_prompt(),
                           .min_tokens = request.min_tokens,
                           .max_tokens = request.max_tokens,
                           .stops = request.stops};
  std::vector<std::vector<Token>> prompts;
  if (request.chat) {
    require_fits(field_of(request), vocabulary, bytes_of(request.chat->messages), context);
    WrittenChat chat = written_chat(request, chat_template);
    prompts.push_back(tokens_of(field_of(request), vocabulary, chat.prompt));
    prepared.prompts.push_back(std::move(chat.prompt.text));
    prepared.reader = std::move(chat.reader);
    generation.grammar = read_grammar(vocabulary, chat.grammar);
    generation.shown_tokens = std::move(chat.shown_tokens);
    std::ranges::move(chat.stops, std::back_inserter(generation.stops));
  } else {
    generation.grammar = read_grammar(vocabulary, grammar_of(request));
    if (request.infill) prompts.push_back(infill_tokens(request, vocabulary, context));
    for (const Prompt& prompt : request.prompts) {
      prompts.push_back(tokens_of(field_of(request), vocabulary, prompt, context));
    }
    for (const std::vector<Token>& tokens : prompts) {
      std::string text;
      for (const Token token : tokens) text += vocabulary.piece(token, /*show_special=*/true);
      prepared.prompts.push_back(std::move(text));
    }
  }
  for (const std::vector<Token>& tokens : prompts) {
    if (tokens.empty()) throw RequestError(kInvalidValue, "the prompt is empty", field_of(request));
    if (std::ssize(tokens) >= context) {
      refuse_length(field_of(request),
                    fmt::format("the prompt has {} tokens, and one must be left for the answer",
                                tokens.size()),
                    context, tokens.size());
    }
    generation.prompt = tokens;
    for (int i = 0; i < request.tried; ++i) {
      generation.sampling.stream = static_cast<int>(prepared.generations.size());
      generation.slot = i == 0 ? request.slot : -1;
      prepared.generations.push_back(generation);
    }
  }
  return prepared;
}

}  // namespace firp
