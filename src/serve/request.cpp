#include "serve/request.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include "model/ggml_log.h"
#include "serve/messages.h"
#include "serve/responses.h"

namespace firp {
namespace {

/// Fields of OpenAI's, llama.cpp's and vLLM's requests that would change the answer and are not
/// done here: they must not be let pass, unless they say what is done anyway. `neutral`: that
/// value, besides null, false, 0 and what is empty.
struct NotDone {
  const char* name;
  Json neutral = nullptr;
};
const NotDone kNotDone[] = {
    {"add_special_tokens", true},
    {"allowed_token_ids"},
    {"audio"},
    {"bad_words"},
    {"ban_eos_token"},
    {"banned_strings"},
    {"beam_search"},
    {"chat_template"},
    {"context"},
    {"custom_token_bans"},
    {"documents"},
    {"format"},
    {"function_call", "none"},
    {"functions"},
    {"grammar_triggers"},
    {"guidance_scale", 1},
    {"guided_choice"},
    {"guided_decoding_backend"},
    {"guided_grammar"},
    {"guided_json"},
    {"guided_regex"},
    {"guided_whitespace_pattern"},
    {"image_data"},
    {"images"},
    {"include_reasoning", true},
    {"include_stop_str_in_output"},
    {"length_penalty", 1},
    {"logits_processors"},
    {"lora"},
    {"max_new_tokens"},
    {"mirostat_mode"},
    {"multimodal_data"},
    {"n_cmpl", 1},
    {"n_indent"},
    {"negative_prompt"},
    {"no_repeat_ngram_size"},
    {"num_beams", 1},
    {"options"},
    {"penalize_nl"},
    {"previous_response_id"},
    {"prompt_embeds"},
    {"prompt_logprobs"},
    {"raw"},
    {"reasoning"},
    {"reasoning_budget", -1},
    {"regex"},
    {"rep_pen", 1},
    {"repetition_penalty", 1},
    {"sampler_order"},
    {"skip_special_tokens", true},
    {"smoothing_factor"},
    {"stop_regex"},
    {"stop_sequences"},
    {"stop_token_ids"},
    {"stopping_strings"},
    {"structural_tag"},
    {"structured_outputs"},
    {"suffix"},
    {"t_max_predict_ms", -1},
    {"template"},
    {"tfs", 1},
    {"tfs_z", 1},
    {"think"},
    {"thinking_budget_tokens", -1},
    {"thinking_token_budget"},
    {"top_a"},
    {"truncate_prompt_tokens", -1},
    {"use_beam_search"},
    {"verbosity"},
    {"vllm_xargs"},
    {"web_search_options"},
};

void refuse_what_is_not_done(const Json& body) {
  for (const auto& [name, neutral] : kNotDone) {
    // These are on where they are not mentioned.
    const bool on_by_default = neutral == true;
    const Json* const value = find(body, name);
    if (value == nullptr || *value == neutral || (is_off(*value) && !on_by_default)) continue;
    // What is done with no functions to choose from.
    if (*value == "auto" && neutral == "none") continue;
    refuse_unsupported(name);
  }
  // A number asks for those of the token itself, 0 for no others besides.
  const Json* const of_prompt = find(body, "prompt_logprobs");
  if (of_prompt != nullptr && of_prompt->is_number()) refuse_unsupported("prompt_logprobs");
  if (const Json* const modalities = find(body, "modalities")) {
    if (*modalities != Json::array({"text"})) refuse_unsupported("modalities");
  }
}

/// llama.cpp's and OpenAI's forms: a list of [token, bias], or an object of "token": bias. Instead
/// of a token there may be a text. A bias of false: never.
void set_logit_bias(const Json& body, int vocabulary, TextRequest& request) {
  const char* const name = "logit_bias";
  const Json* const biases = find(body, name);
  if (biases == nullptr) return;
  const auto add = [&](const Json& token, const Json& bias) {
    const bool never = bias.is_boolean() && !bias.get<bool>();
    if (!never && !bias.is_number()) {
      refuse(name, fmt::format("a bias of '{}' is a number, or false", name));
    }
    const float value = never ? -std::numeric_limits<float>::infinity() : bias.get<float>();
    if (std::isnan(value) || value == std::numeric_limits<float>::infinity()) {
      refuse(name, fmt::format("a bias of '{}' is a number, or false", name));
    }
    if (token.is_string()) {
      const std::string text = text_of(token, name);
      if (text.size() > kMostStopBytes) {
        refuse(name, fmt::format("a text of '{}' may have {} bytes", name, kMostStopBytes));
      }
      return request.text_biases.push_back({text, value});
    }
    if (!token.is_number_integer() || token < 0 || token >= vocabulary) {
      refuse(name,
             fmt::format("'{}' names tokens by their numbers, 0 to {}", name, vocabulary - 1));
    }
    request.sampling.logit_bias.push_back({token.get<Token>(), value});
  };
  request.sampling.logit_bias.clear();
  if (biases->is_object()) {
    for (const auto& [key, bias] : biases->items()) {
      const Json number = Json::parse(key, nullptr, /*allow_exceptions=*/false);
      add(number.is_number() ? number : Json(key), bias);
    }
  } else if (biases->is_array()) {
    for (const Json& pair : *biases) {
      if (!pair.is_array() || pair.size() != 2) {
        refuse(name, fmt::format("'{}' is a list of [token, bias]", name));
      }
      add(pair[0], pair[1]);
    }
  } else {
    refuse(name, fmt::format("'{}' is a list of [token, bias], or an object", name));
  }
}

/// llama.cpp's forms: a list of names, or a string of letters.
std::vector<Sampler> samplers_of(const Json& samplers) {
  const char* const name = "samplers";
  if (!samplers.is_array() && !samplers.is_string()) {
    refuse(name, fmt::format("'{}' is a list of names, or a string of letters", name));
  }
  try {
    if (samplers.is_string()) return samplers_of_letters(samplers.get<std::string>());
    std::vector<std::string> names;
    for (const Json& each : samplers) names.push_back(text_of(each, name));
    return samplers_of_names(names);
  } catch (const RequestError&) {
    throw;
  } catch (const Error& error) {
    refuse(name, fmt::format("'{}': {}", name, error.what()));
  }
}

std::vector<std::string> breakers_of(const Json& breakers) {
  const char* const name = "dry_sequence_breakers";
  if (!breakers.is_array() || breakers.size() > kMostStops) {
    refuse(name, fmt::format("'{}' is a list of at most {} strings", name, kMostStops));
  }
  std::vector<std::string> texts;
  for (const Json& each : breakers) {
    texts.push_back(text_of(each, name));
    if (texts.back().empty() || texts.back().size() > kMostBreakerBytes) {
      refuse(name, fmt::format("a string of '{}' has 1 to {} bytes", name, kMostBreakerBytes));
    }
  }
  return texts;
}

SamplingOptions sampling_of(const Json& body, const RequestDefaults& defaults) {
  SamplingOptions sampling = defaults.sampling;
  const auto real = [&](const char* name, float& to, double least, double most = 1e30) {
    to = static_cast<float>(number(body, name, least, most).value_or(to));
  };
  // As in llama.cpp, -1 is all: the vocabulary, or the context.
  const auto whole = [&](const char* name, int& to, std::int64_t least) {
    to = static_cast<int>(integer(body, name, least).value_or(to));
  };
  real("temperature", sampling.temperature, 0);
  real("top_p", sampling.top_p, 0, 1);
  real("min_p", sampling.min_p, 0, 1);
  real("repeat_penalty", sampling.repeat_penalty, 1e-3);
  real("presence_penalty", sampling.presence_penalty, -2, 2);
  real("frequency_penalty", sampling.frequency_penalty, -2, 2);
  real("top_n_sigma", sampling.top_n_sigma, -1e30);
  real("typ_p", sampling.typical_p, 0, 1);
  real("typical_p", sampling.typical_p, 0, 1);
  real("xtc_probability", sampling.xtc_probability, 0, 1);
  real("xtc_threshold", sampling.xtc_threshold, 0, 1);
  real("dynatemp_range", sampling.dynatemp_range, 0);
  real("dynatemp_exponent", sampling.dynatemp_exponent, 0);
  real("dry_multiplier", sampling.dry.multiplier, 0);
  real("dry_base", sampling.dry.base, 1);
  whole("dry_allowed_length", sampling.dry.allowed_length, 0);
  whole("dry_penalty_last_n", sampling.dry.penalty_last_n, -1);
  if (const Json* const breakers = find(body, "dry_sequence_breakers")) {
    sampling.dry.sequence_breakers = breakers_of(*breakers);
  }
  whole("mirostat", sampling.mirostat.version, 0);
  if (sampling.mirostat.version > 2) refuse("mirostat", "'mirostat' must be 0, 1 or 2");
  real("mirostat_tau", sampling.mirostat.tau, 0);
  real("mirostat_eta", sampling.mirostat.eta, 0);
  real("adaptive_target", sampling.adaptive.target, -1e30, 1);
  real("adaptive_decay", sampling.adaptive.decay, 0, 0.99);
  if (const Json* const samplers = find(body, "samplers")) {
    sampling.samplers = samplers_of(*samplers);
  }
  whole("min_keep", sampling.min_keep, 0);
  whole("top_k", sampling.top_k, INT_MIN);
  whole("repeat_last_n", sampling.repeat_last_n, -1);
  // As in llama.cpp, a negative seed is another one each time.
  const auto seed = integer(body, "seed", INT64_MIN, INT64_MAX);
  if (seed && *seed >= 0) {
    sampling.seed = static_cast<std::uint64_t>(*seed);
  } else {
    sampling.seed = !seed && defaults.seed ? *defaults.seed : std::random_device()();
  }
  return sampling;
}

/// Text, or a list of parts of type text.
Json content_of(const Json& message, const std::string& role) {
  const Json* const content = find(message, "content");
  if (content == nullptr) {
    if (role == "assistant") return nullptr;
    refuse("content", fmt::format("a message of role {} has no 'content'", role), kMissing);
  }
  if (!content->is_array()) return text_of(*content, "content");
  Json parts = Json::array();
  for (const Json& part : *content) {
    parts.push_back({{"type", "text"}, {"text", text_of_part(part, "content")}});
  }
  return parts;
}

Json tool_calls_of(const Json& calls) {
  if (!calls.is_array()) refuse("tool_calls", "'tool_calls' must be a list");
  Json list = Json::array();
  for (const Json& call : calls) {
    const Json* const function = call.is_object() ? find(call, "function") : nullptr;
    const Json* const name =
        function != nullptr && function->is_object() ? find(*function, "name") : nullptr;
    if (name == nullptr) refuse("tool_calls", "a tool call has a 'function' with a 'name'");
    const Json* const arguments = find(*function, "arguments");
    Json written = {{"type", "function"},
                    {"function",
                     {{"name", text_of(*name, "name")},
                      {"arguments", arguments == nullptr     ? "{}"
                                    : arguments->is_string() ? arguments->get<std::string>()
                                                             : arguments->dump()}}}};
    if (const Json* const id = find(call, "id")) written["id"] = text_of(*id, "id");
    list.push_back(std::move(written));
  }
  return list;
}

Json message_of(const Json& message) {
  const Json* const role_member = message.is_object() ? find(message, "role") : nullptr;
  if (role_member == nullptr) {
    refuse("messages", "a message must be an object with 'role' and 'content'");
  }
  const std::string role = text_of(*role_member, "role");
  static constexpr const char* kRoles[] = {"system", "developer", "user", "assistant", "tool"};
  if (std::ranges::count(kRoles, role) == 0) {
    refuse("role", fmt::format("there is no role '{}' here: system, developer, user, assistant or "
                               "tool",
                               one_line(role)));
  }
  for (const char* const name : {"function_call", "audio", "images", "prefix"}) {
    const Json* const value = find(message, name);
    if (value != nullptr && !is_off(*value)) refuse_unsupported(name);
  }
  Json written = {{"role", role}, {"content", content_of(message, role)}};
  const Json* const calls = find(message, "tool_calls");
  if (calls != nullptr && !calls->empty()) {
    written["tool_calls"] = tool_calls_of(*calls);
  } else if (written["content"].is_null()) {
    written["content"] = "";
  }
  for (const char* const name : {"reasoning_content", "name", "tool_call_id"}) {
    if (const Json* const value = find(message, name)) written[name] = text_of(*value, name);
  }
  return written;
}

Json messages_of(const Json& body) {
  const Json* const messages = find(body, "messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    refuse("messages", "'messages' must be a list of at least one message",
           messages == nullptr ? kMissing : kInvalidValue);
  }
  if (messages->size() > kMostMessages) {
    refuse("messages", fmt::format("'messages' may hold {} messages", kMostMessages), kTooLarge);
  }
  Json list = Json::array();
  for (const Json& message : *messages) list.push_back(message_of(message));
  return list;
}

Json tools_of(const Json& body) {
  const Json* const tools = find(body, "tools");
  if (tools == nullptr) return nullptr;
  if (!tools->is_array()) refuse("tools", "'tools' must be a list");
  if (tools->empty()) return nullptr;
  Json list = Json::array();
  for (const Json& tool : *tools) {
    const Json* const type = tool.is_object() ? find(tool, "type") : nullptr;
    const Json* const function = type != nullptr ? find(tool, "function") : nullptr;
    if (type == nullptr || *type != "function" || function == nullptr || !function->is_object()) {
      refuse("tools", "a tool is an object of type function, with a 'function'");
    }
    const Json* const name = find(*function, "name");
    const Json* const parameters = find(*function, "parameters");
    if (name == nullptr) refuse("tools", "a tool's 'function' has no 'name'", kMissing);
    if (parameters != nullptr && !parameters->is_object()) {
      refuse("tools", "a function's 'parameters' must be a JSON schema, an object");
    }
    const Json* const description = find(*function, "description");
    list.push_back(
        {{"type", "function"},
         {"function",
          {{"name", text_of(*name, "name")},
           {"description", description == nullptr ? "" : text_of(*description, "description")},
           {"parameters", parameters == nullptr ? Json::object() : *parameters}}}});
  }
  return list;
}

/// OpenAI's forms; a function by its name leaves that one alone among the tools.
void choose_tool(const Json& body, ChatInput& chat) {
  const Json* const choice = find(body, "tool_choice");
  if (choice == nullptr || *choice == "auto") return;
  if (*choice == "none") {
    chat.tool_choice = ToolChoice::kNone;
    return;
  }
  if (*choice != "required") {
    const Json* const function = choice->is_object() ? find(*choice, "function") : nullptr;
    const Json* const name =
        function != nullptr && function->is_object() ? find(*function, "name") : nullptr;
    if (name == nullptr) {
      refuse("tool_choice", "'tool_choice' is auto, none, required, or a function by its name");
    }
    Json chosen = Json::array();
    for (const Json& tool : chat.tools) {
      if (tool["function"]["name"] == *name) chosen.push_back(tool);
    }
    if (chosen.empty()) refuse("tool_choice", "'tool_choice' names none of the 'tools'");
    chat.tools = std::move(chosen);
  }
  if (chat.tools.is_null()) refuse("tool_choice", "'tool_choice' needs 'tools'");
  chat.tool_choice = ToolChoice::kRequired;
}

/// Of any object, where the schema says nothing.
std::string schema_text(const Json& schema, const char* name) {
  if (!schema.is_object() && !schema.is_boolean()) {
    refuse(name, fmt::format("'{}' must be a JSON schema, an object", name));
  }
  return schema.empty() ? R"({"type": "object"})" : schema.dump();
}

/// `json_schema` and `response_format`; empty: neither.
std::string json_schema_of(const Json& body) {
  std::string schema;
  if (const Json* const own = find(body, "json_schema")) schema = schema_text(*own, "json_schema");
  const Json* const format = find(body, "response_format");
  if (format == nullptr) return schema;
  const char* const name = "response_format";
  const Json* const type = format->is_object() ? find(*format, "type") : nullptr;
  if (type != nullptr && *type == "text") return schema;
  if (type != nullptr && *type == "json_object") {
    const Json* const inside = find(*format, "schema");
    if (inside == nullptr && !schema.empty()) return schema;
    return schema_text(inside == nullptr ? Json::object() : *inside, name);
  }
  if (type != nullptr && *type == "json_schema") {
    const Json* const wrapped = find(*format, "json_schema");
    const Json* inside =
        wrapped != nullptr && wrapped->is_object() ? find(*wrapped, "schema") : nullptr;
    if (inside == nullptr) inside = find(*format, "schema");
    if (inside == nullptr) {
      refuse(name, "'response_format' of type json_schema has its 'schema' in 'json_schema'",
             kMissing);
    }
    return schema_text(*inside, name);
  }
  refuse(name, "'response_format' is of type text, json_object or json_schema");
}

std::string grammar_of(const Json& body) {
  const Json* const grammar = find(body, "grammar");
  if (grammar == nullptr) return {};
  std::string gbnf = text_of(*grammar, "grammar");
  if (gbnf.size() > kMostGrammarBytes) {
    refuse("grammar", fmt::format("'grammar' may have {} bytes", kMostGrammarBytes), kTooLarge);
  }
  return gbnf;
}

ReasoningFormat reasoning_of(const Json& body, ReasoningFormat otherwise) {
  const Json* const format = find(body, "reasoning_format");
  if (format == nullptr) return otherwise;
  if (*format == "none") return ReasoningFormat::kNone;
  if (*format == "auto" || *format == "deepseek" || *format == "deepseek-legacy") {
    return ReasoningFormat::kApart;
  }
  refuse("reasoning_format", "'reasoning_format' is none, auto, deepseek or deepseek-legacy");
}

/// What `chat_template_kwargs` and OpenAI's `reasoning_effort` say to the template.
void set_template_variables(const Json& body, ChatInput& chat) {
  if (const Json* const variables = find(body, "chat_template_kwargs")) {
    if (!variables->is_object()) {
      refuse("chat_template_kwargs", "'chat_template_kwargs' must be an object");
    }
    for (const auto& [name, value] : variables->items()) chat.variables[name] = value;
  }
  if (const auto thinks = boolean(body, "enable_thinking")) chat.thinks = *thinks;
  if (const auto at = chat.variables.find("enable_thinking"); at != chat.variables.end()) {
    if (!at->second.is_boolean()) {
      refuse("chat_template_kwargs", "'enable_thinking' must be true or false");
    }
    chat.thinks = at->second.get<bool>();
    chat.variables.erase(at);
  }
  if (const Json* const effort = find(body, "reasoning_effort")) {
    const std::string level = text_of(*effort, "reasoning_effort");
    if (level == "none") {
      chat.thinks = false;
    } else if (!level.empty()) {
      chat.variables["reasoning_effort"] = level;
    }
  }
}

ChatInput chat_of(const Json& body, const RequestDefaults& defaults) {
  ChatInput chat = {.messages = messages_of(body),
                    .tools = tools_of(body),
                    .parallel_tool_calls = boolean(body, "parallel_tool_calls").value_or(false),
                    .json_schema = json_schema_of(body),
                    .grammar = grammar_of(body),
                    .thinks = defaults.thinks,
                    .reasoning = reasoning_of(body, defaults.reasoning),
                    .variables = defaults.template_variables};
  choose_tool(body, chat);
  if (!chat.grammar.empty() && !chat.json_schema.empty()) {
    refuse("grammar", "give a 'grammar' or a JSON schema, not both");
  }
  if (!chat.grammar.empty() && !chat.tools.is_null() && chat.tool_choice != ToolChoice::kNone) {
    refuse("grammar", "'grammar' and 'tools' do not go together");
  }
  set_template_variables(body, chat);
  const Json& last = chat.messages.back();
  const auto goes_on = boolean(body, "continue_final_message");
  const auto opens = boolean(body, "add_generation_prompt");
  if (goes_on.value_or(false) && opens.value_or(false)) {
    refuse("continue_final_message",
           "'continue_final_message' and 'add_generation_prompt' are not both possible");
  }
  chat.continues_answer = last["role"] == "assistant" && goes_on.value_or(!opens.value_or(false));
  if (goes_on.value_or(false) && !chat.continues_answer) {
    refuse("continue_final_message", "the last message is not the assistant's");
  }
  if (chat.continues_answer && last.contains("tool_calls")) {
    refuse("messages", "a message with tool calls cannot be continued");
  }
  if (chat.continues_answer && chat.messages.size() > 1 &&
      chat.messages[chat.messages.size() - 2]["role"] == "assistant") {
    refuse("messages", "two messages of the assistant at the end: which is to be continued?");
  }
  chat.open_answer = opens.value_or(true);
  return chat;
}

Token token_of(const Json& value, const char* name, int vocabulary) {
  if (!value.is_number_integer() || value < 0 || value >= vocabulary) {
    refuse(name, fmt::format("tokens of '{}' are numbers of 0 to {}", name, vocabulary - 1));
  }
  return value.get<Token>();
}

/// A string, or a list of tokens and strings; llama.cpp also has an object with the string in it,
/// beside media.
Prompt one_prompt_of(const Json& value, const char* name, int vocabulary) {
  Prompt prompt;
  if (value.is_object()) {
    const Json* const media = find(value, "multimodal_data");
    if (media != nullptr && !is_off(*media)) refuse_unsupported("multimodal_data");
    const Json* const text = find(value, "prompt_string");
    if (text == nullptr) {
      refuse(name, fmt::format("an object in '{}' has a 'prompt_string'", name), kMissing);
    }
    prompt.emplace_back(text_of(*text, "prompt_string"));
    return prompt;
  }
  if (!value.is_array()) {
    prompt.emplace_back(text_of(value, name));
    return prompt;
  }
  for (const Json& each : value) {
    if (each.is_string()) {
      prompt.emplace_back(each.get<std::string>());
      continue;
    }
    if (prompt.empty() || prompt.back().index() == 0) prompt.emplace_back(std::vector<Token>());
    std::get<std::vector<Token>>(prompt.back()).push_back(token_of(each, name, vocabulary));
  }
  return prompt;
}

/// None is empty.
std::vector<Prompt> completion_prompts(const Json& body, int vocabulary) {
  const Json* const prompt = find(body, "prompt");
  if (prompt == nullptr) refuse("prompt", "'prompt' is missing", kMissing);
  std::vector<Prompt> list = prompts_of(*prompt, "prompt", kMostAnswers, vocabulary);
  for (const Prompt& each : list) {
    const bool empty = std::ranges::all_of(each, [](const PromptPart& part) {
      return std::visit([](const auto& p) { return p.empty(); }, part);
    });
    if (empty) refuse("prompt", "'prompt' is empty");
  }
  return list;
}

Infill infill_of(const Json& body) {
  if (find(body, "input_prefix") == nullptr) {
    refuse("input_prefix", "'input_prefix' is missing", kMissing);
  }
  if (find(body, "input_suffix") == nullptr) {
    refuse("input_suffix", "'input_suffix' is missing", kMissing);
  }
  Infill infill = {.prefix = optional_text(body, "input_prefix"),
                   .suffix = optional_text(body, "input_suffix"),
                   .prompt = optional_text(body, "prompt"),
                   .extra = {}};
  const Json* const extra = find(body, "input_extra");
  if (extra == nullptr) return infill;
  if (!extra->is_array()) refuse("input_extra", "'input_extra' must be a list");
  for (const Json& file : *extra) {
    if (!file.is_object() || find(file, "text") == nullptr) {
      refuse("input_extra", "'input_extra' holds objects with 'filename' and 'text'");
    }
    infill.extra.push_back({optional_text(file, "filename"), optional_text(file, "text")});
  }
  return infill;
}

std::vector<std::string> stops_of(const Json& body) {
  std::vector<std::string> stops = strings(body, "stop", kMostStops);
  for (const std::string& each : stops) {
    if (each.empty()) refuse("stop", "'stop' must not hold an empty string");
    if (each.size() > kMostStopBytes) {
      refuse("stop", fmt::format("a string of 'stop' may have {} bytes", kMostStopBytes));
    }
  }
  return stops;
}

int count_of(const Json& body, const char* name) {
  const auto count = integer(body, name, 0);
  if (count.value_or(0) > kMostLikeliest) {
    refuse(name, fmt::format("'{}' must be at most {}", name, kMostLikeliest));
  }
  return static_cast<int>(count.value_or(0));
}

/// Of chats a flag and a number, of texts a number, as llama.cpp writes it `n_probs`. -1: not asked
/// for.
int likeliest_of(const Json& body, Dialect dialect) {
  if (dialect == Dialect::kText) {
    const Json* const value = find(body, "logprobs");
    if (value == nullptr || (value->is_boolean() && !value->get<bool>())) return -1;
    return count_of(body, "logprobs");
  }
  if (dialect == Dialect::kLlama || dialect == Dialect::kInfill) {
    const int count = count_of(body, "n_probs");
    return count > 0 ? count : -1;
  }
  const bool wanted = boolean(body, "logprobs").value_or(false);
  const int count = count_of(body, "top_logprobs");
  if (count > 0 && !wanted) refuse("top_logprobs", "'top_logprobs' needs 'logprobs'");
  return wanted ? count : -1;
}

int slot_of(const Json& body, int slots) {
  const std::int64_t slot = integer(body, "id_slot", -1).value_or(-1);
  if (slot >= slots) {
    refuse("id_slot", fmt::format("'id_slot' must be below {}, the number of slots (firp serve "
                                  "--parallel), or -1: any",
                                  slots));
  }
  return static_cast<int>(slot);
}

int most_tokens_of(const Json& body, int limit) {
  for (const char* const name : {"n_predict", "max_tokens", "max_completion_tokens"}) {
    // llama.cpp's -1: without a limit.
    const std::int64_t most = integer(body, name, -1).value_or(-1);
    if (most >= 0) limit = static_cast<int>(std::min<std::int64_t>(limit, most));
  }
  return limit;
}

void set_answers(const Json& body, TextRequest& request) {
  const auto count = [&](const char* name) {
    const std::int64_t value = integer(body, name, 1).value_or(1);
    if (value > kMostAnswers) {
      refuse(name, fmt::format("'{}' must be at most {}", name, kMostAnswers));
    }
    return static_cast<int>(value);
  };
  request.answers = std::max(count("n"), count("n_cmpl"));
  request.tried = find(body, "best_of") == nullptr ? request.answers : count("best_of");
  if (request.tried < request.answers) refuse("best_of", "'best_of' must be at least 'n'");
  if (request.tried > request.answers && request.stream) {
    refuse("best_of", "which of them is best is known at the end: ask without 'stream'");
  }
}

}  // namespace

TextRequest parse_request(std::string_view text, Dialect dialect, const RequestDefaults& defaults) {
  Json body = parse_body(text);
  if (dialect == Dialect::kResponses) body = chat_of_responses(body);
  if (dialect == Dialect::kMessages) body = chat_of_messages(body);
  refuse_what_is_not_done(body);
  TextRequest request = {.dialect = dialect,
                         .sampling = sampling_of(body, defaults),
                         .ignore_eos = boolean(body, "ignore_eos").value_or(false),
                         .min_tokens = static_cast<int>(integer(body, "min_tokens", 0).value_or(0)),
                         .max_tokens = most_tokens_of(body, defaults.max_tokens),
                         .stops = stops_of(body),
                         .likeliest = likeliest_of(body, dialect),
                         .after_sampling = boolean(body, "post_sampling_probs").value_or(false),
                         .echo = boolean(body, "echo").value_or(false),
                         .stream = boolean(body, "stream").value_or(false),
                         .timings_per_token = boolean(body, "timings_per_token").value_or(false),
                         .verbose = boolean(body, "verbose").value_or(defaults.verbose),
                         .return_tokens = boolean(body, "return_tokens").value_or(false),
                         .return_progress = boolean(body, "return_progress").value_or(false),
                         .slot = slot_of(body, defaults.slots),
                         .response_fields = strings(body, "response_fields", kMostStops)};
  set_answers(body, request);
  set_logit_bias(body, defaults.vocabulary, request);
  // Other dialects have no place for a probability that is 0 or not the model's.
  const bool is_own = dialect == Dialect::kLlama || dialect == Dialect::kInfill;
  if (request.after_sampling && !is_own) refuse_unsupported("post_sampling_probs");
  switch (dialect) {
    case Dialect::kChat:
    case Dialect::kResponses:
    case Dialect::kMessages:
      request.chat = chat_of(body, defaults);
      if (request.echo) refuse_unsupported("echo");
      break;
    case Dialect::kInfill:
      request.infill = infill_of(body);
      break;
    case Dialect::kText:
    case Dialect::kLlama:
      request.prompts = completion_prompts(body, defaults.vocabulary);
      break;
  }
  if (!request.chat) {
    request.grammar = grammar_of(body);
    request.json_schema = json_schema_of(body);
    if (!request.grammar.empty() && !request.json_schema.empty()) {
      refuse("grammar", "give a 'grammar' or a JSON schema, not both");
    }
  }
  if (const Json* const options = find(body, "stream_options")) {
    if (!options->is_object()) refuse("stream_options", "'stream_options' must be an object");
    request.stream_usage = boolean(*options, "include_usage").value_or(false);
  }
  if (request.tells_prompt() && request.stream) {
    refuse("stream", "'echo' with 'logprobs' is not streamed", kUnsupported);
  }
  if (request.tells_prompt() && request.likeliest > kMostLikeliestOfPrompt) {
    refuse("logprobs",
           fmt::format("'logprobs' must be at most {} with 'echo'", kMostLikeliestOfPrompt));
  }
  request.body = std::move(body);
  return request;
}

std::string parse_slot_file_request(std::string_view body) {
  const Json parsed = parse_body(body);
  const Json* const member = find(parsed, "filename");
  if (member == nullptr) refuse("filename", "'filename' is missing", kMissing);
  std::string name = text_of(*member, "filename");
  constexpr std::size_t kMostBytes = 200;
  // What some system takes for one of these, too: a full stop, slashes, nothing.
  static constexpr std::string_view kNotInNames[] = {
      "/", "\\", ":",      "*",      "?",      "\"",     "<",     ">",
      "|", "..", "\uFF0E", "\u2215", "\u2216", "\uFFFD", "\uFEFF"};
  const bool is_good =
      !name.empty() && name.size() <= kMostBytes && name.front() != ' ' && name.back() != ' ' &&
      name.back() != '.' &&
      std::ranges::none_of(name, [](unsigned char c) { return c < 0x20 || c == 0x7F; }) &&
      std::ranges::none_of(
          kNotInNames, [&](std::string_view each) { return name.find(each) != std::string::npos; });
  if (!is_good) {
    refuse("filename",
           fmt::format("'filename' must be the name of a file in the server's folder (no '/', no "
                       "'..', none of \\:*?\"<>|, at most {} bytes)",
                       kMostBytes));
  }
  return name;
}

std::vector<Prompt> prompts_of(const Json& value, const char* name, std::size_t most,
                               int vocabulary) {
  const bool several =
      value.is_array() && !value.empty() &&
      std::ranges::all_of(value, [](const Json& each) { return !each.is_number(); });
  if (!several) return {one_prompt_of(value, name, vocabulary)};
  if (value.size() > most) {
    refuse(name, fmt::format("'{}' may hold {} texts", name, most), kTooLarge);
  }
  std::vector<Prompt> list;
  for (const Json& each : value) list.push_back(one_prompt_of(each, name, vocabulary));
  return list;
}

std::string text_of_part(const Json& part, const char* name) {
  const Json* const type = part.is_object() ? find(part, "type") : nullptr;
  const Json* const words = type != nullptr && *type == "text" ? find(part, "text") : nullptr;
  if (words == nullptr) {
    refuse(name, fmt::format("'{}' may hold parts of type text only", name), kUnsupported);
  }
  return text_of(*words, "text");
}

TokenizeRequest parse_tokenize_request(std::string_view body) {
  const Json parsed = parse_body(body);
  const Json* const content = find(parsed, "content");
  if (content == nullptr) refuse("content", "'content' is missing", kMissing);
  return {.content = text_of(*content, "content"),
          .add_special = boolean(parsed, "add_special").value_or(false),
          .parse_special = boolean(parsed, "parse_special").value_or(true),
          .with_pieces = boolean(parsed, "with_pieces").value_or(false)};
}

std::vector<Token> parse_detokenize_request(std::string_view body, int vocabulary) {
  const Json parsed = parse_body(body);
  const Json* const list = find(parsed, "tokens");
  if (list == nullptr) refuse("tokens", "'tokens' is missing", kMissing);
  if (!list->is_array()) refuse("tokens", "'tokens' must be a list of numbers");
  std::vector<Token> tokens;
  for (const Json& token : *list) {
    if (!token.is_number_integer() || token < 0 || token >= vocabulary) {
      refuse("tokens", fmt::format("'tokens' holds numbers of 0 to {}", vocabulary - 1));
    }
    tokens.push_back(token.get<Token>());
  }
  return tokens;
}

}  // namespace firp
