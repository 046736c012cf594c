#include "serve/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <limits>
#include <optional>
#include <random>

#include "model/ggml_log.h"

namespace firp {
namespace {

using Body = nlohmann::json;  // its members are found in logarithmic time

[[noreturn]] void refuse(const char* name, const std::string& message,
                         const ErrorKind& kind = kInvalidValue) {
  throw RequestError(kind, message, name);
}
[[noreturn]] void refuse_unsupported(const char* name) {
  refuse(name, fmt::format("'{}' is not supported", name), kUnsupported);
}

/// The body, if it is JSON and no larger than one may be.
Body parse_body(std::string_view body) {
  try {
    require_utf8(body, "the body");
  } catch (const Error& error) {
    throw RequestError(kNotJson, error.what());
  }
  std::size_t values = 0;
  const auto count = [&values](int depth, Body::parse_event_t event, const Body&) {
    using Event = Body::parse_event_t;
    const bool nests = event == Event::object_start || event == Event::array_start;
    if (nests && depth >= kMostDepth) {
      throw RequestError(
          kTooLarge, fmt::format("the body has objects and lists more than {} deep", kMostDepth));
    }
    if ((nests || event == Event::value) && ++values > kMostValues) {
      throw RequestError(kTooLarge, fmt::format("the body has more than {} values", kMostValues));
    }
    return true;
  };
  try {
    return Body::parse(body, count);
  } catch (const Body::parse_error& error) {
    throw RequestError(kNotJson, fmt::format("the body is not JSON (at byte {})", error.byte));
  } catch (const Body::exception&) {  // a number that no type holds
    throw RequestError(kNotJson, "the body is not JSON: a number is out of range");
  }
}

/// The member, unless it is missing or null.
const Body* find(const Body& object, const char* name) {
  const auto at = object.find(name);
  return at == object.end() || at->is_null() ? nullptr : &*at;
}

std::optional<double> number(const Body& object, const char* name, double least, double most) {
  const Body* const value = find(object, name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) refuse(name, fmt::format("'{}' must be a number", name));
  const auto found = value->get<double>();
  if (!(found >= least && found <= most)) {
    refuse(name, most < 1e9 ? fmt::format("'{}' must be between {} and {}", name, least, most)
                            : fmt::format("'{}' must be at least {}", name, least));
  }
  return found;
}

/// Also one written as 16.0, as some languages do. What is more than `most` counts as that.
std::optional<std::int64_t> integer(const Body& object, const char* name, std::int64_t least,
                                    std::int64_t most = INT_MAX) {
  const Body* const value = find(object, name);
  if (value == nullptr) return std::nullopt;
  constexpr double kExact = 9007199254740992;  // the last one before which a double has all
  const double real = value->is_number() ? value->get<double>() : NAN;
  const bool whole = value->is_number_integer() || (real == std::floor(real) && real < kExact);
  if (!whole) refuse(name, fmt::format("'{}' must be a whole number", name));
  if (real < static_cast<double>(least)) {
    refuse(name, fmt::format("'{}' must be at least {}", name, least));
  }
  return real >= static_cast<double>(most) ? most : value->get<std::int64_t>();
}

std::optional<bool> boolean(const Body& object, const char* name) {
  const Body* const value = find(object, name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) refuse(name, fmt::format("'{}' must be true or false", name));
  return value->get<bool>();
}

std::string text_of(const Body& value, const char* name) {
  if (!value.is_string()) refuse(name, fmt::format("'{}' must be a string", name));
  return value.get<std::string>();
}

/// Says nothing, or "no": null, false, 0, nothing in it.
bool is_off(const Body& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

/// A string, or OpenAI's list of parts, of which only text is understood.
std::string content_of(const Body& message, const std::string& role) {
  const Body* const content = find(message, "content");
  if (content == nullptr) {
    if (role == "assistant") return {};
    refuse("content", fmt::format("a message of role {} has no 'content'", role), kMissing);
  }
  if (!content->is_array()) return text_of(*content, "content");
  std::string text;
  for (const Body& part : *content) {
    const Body* const type = part.is_object() ? find(part, "type") : nullptr;
    const Body* const words = type != nullptr && *type == "text" ? find(part, "text") : nullptr;
    if (words == nullptr) {
      refuse("content", "'content' may hold parts of type text only", kUnsupported);
    }
    text += text_of(*words, "text");
  }
  return text;
}

std::vector<ChatMessage> messages_of(const Body& body) {
  const Body* const messages = find(body, "messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    refuse("messages", "'messages' must be a list of at least one message",
           messages == nullptr ? kMissing : kInvalidValue);
  }
  if (messages->size() > kMostMessages) {
    refuse("messages", fmt::format("'messages' may hold {} messages", kMostMessages), kTooLarge);
  }
  std::vector<ChatMessage> list;
  for (const Body& message : *messages) {
    const Body* const role_member = message.is_object() ? find(message, "role") : nullptr;
    if (role_member == nullptr) {
      refuse("messages", "a message must be an object with 'role' and 'content'");
    }
    std::string role = text_of(*role_member, "role");
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant") {
      refuse("role",
             fmt::format("there is no role '{}' here: system, user or assistant", one_line(role)));
    }
    for (const char* const name : {"tool_calls", "function_call", "audio", "images", "prefix"}) {
      const Body* const value = find(message, name);
      if (value != nullptr && !is_off(*value)) refuse_unsupported(name);
    }
    std::string content = content_of(message, role);
    list.push_back({std::move(role), std::move(content)});
  }
  return list;
}

/// A string, or a list that holds one.
std::string prompt_of(const Body& body) {
  const Body* prompt = find(body, "prompt");
  if (prompt == nullptr) refuse("prompt", "'prompt' is missing", kMissing);
  if (prompt->is_array() && prompt->size() == 1) prompt = &prompt->front();
  if (prompt->is_array()) refuse("prompt", "'prompt' must be one string, not a list", kUnsupported);
  std::string text = text_of(*prompt, "prompt");
  if (text.empty()) refuse("prompt", "'prompt' is empty");
  return text;
}

std::vector<std::string> stops_of(const Body& body) {
  const Body* const stop = find(body, "stop");
  std::vector<std::string> stops;
  if (stop == nullptr) return stops;
  if (stop->is_array()) {
    if (stop->size() > kMostStops) {
      refuse("stop", fmt::format("'stop' may hold {} strings", kMostStops));
    }
    for (const Body& each : *stop) stops.push_back(text_of(each, "stop"));
  } else {
    stops.push_back(text_of(*stop, "stop"));
  }
  for (const std::string& each : stops) {
    if (each.empty()) refuse("stop", "'stop' must not hold an empty string");
    if (each.size() > kMostStopBytes) {
      refuse("stop", fmt::format("a string of 'stop' may have {} bytes", kMostStopBytes));
    }
  }
  return stops;
}

/// Fields of OpenAI's, llama.cpp's and vLLM's requests that would change the answer and are not
/// done here: they must not be let pass, unless they say what is done anyway. `neutral`: that
/// value, besides null, false, 0 and what is empty.
struct NotDone {
  const char* name;
  Body neutral = nullptr;
};
const NotDone kNotDone[] = {
    {"add_generation_prompt", true},
    {"add_special_tokens", true},
    {"allowed_token_ids"},
    {"audio"},
    {"bad_words"},
    {"ban_eos_token"},
    {"banned_strings"},
    {"beam_search"},
    {"chat_template"},
    {"chat_template_kwargs"},
    {"context"},
    {"continue_final_message"},
    {"custom_token_bans"},
    {"documents"},
    {"echo"},
    {"enable_thinking"},
    {"format"},
    {"function_call", "none"},
    {"functions"},
    {"grammar"},
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
    {"json_schema"},
    {"length_penalty", 1},
    {"logits_processors"},
    {"lora"},
    {"max_new_tokens"},
    {"min_tokens"},
    {"mirostat_mode"},
    {"multimodal_data"},
    {"n_cmpl", 1},
    {"n_indent"},
    {"n_probs"},
    {"negative_prompt"},
    {"no_repeat_ngram_size"},
    {"num_beams", 1},
    {"options"},
    {"penalize_nl"},
    {"prompt_embeds"},
    {"prompt_logprobs"},
    {"raw"},
    {"reasoning"},
    {"reasoning_budget", -1},
    {"reasoning_effort", "none"},
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
    {"system"},
    {"t_max_predict_ms", -1},
    {"template"},
    {"tfs", 1},
    {"tfs_z", 1},
    {"think"},
    {"thinking"},
    {"thinking_budget_tokens", -1},
    {"thinking_token_budget"},
    {"tool_choice", "none"},
    {"tools"},
    {"top_a"},
    {"truncate_prompt_tokens", -1},
    {"use_beam_search"},
    {"verbosity"},
    {"vllm_xargs"},
    {"web_search_options"},
};

void refuse_what_is_not_done(const Body& body) {
  for (const char* const name : {"n", "best_of"}) {
    if (integer(body, name, 1).value_or(1) != 1) {
      refuse(name, fmt::format("'{}' must be 1: one answer a request", name), kUnsupported);
    }
  }
  for (const auto& [name, neutral] : kNotDone) {
    // These are on where they are not mentioned.
    const bool on_by_default = neutral == true;
    const Body* const value = find(body, name);
    if (value == nullptr || *value == neutral || (is_off(*value) && !on_by_default)) continue;
    // What is done with no tools to choose from.
    if (*value == "auto" && (neutral == "none")) continue;
    refuse_unsupported(name);
  }
  // A number asks for those of the token itself, 0 for no others besides.
  const Body* const of_prompt = find(body, "prompt_logprobs");
  if (of_prompt != nullptr && of_prompt->is_number()) refuse_unsupported("prompt_logprobs");
  if (const Body* const format = find(body, "response_format")) {
    const Body* const type = format->is_object() ? find(*format, "type") : nullptr;
    if (type == nullptr || *type != "text") {
      refuse("response_format", "'response_format' may be of type text only", kUnsupported);
    }
  }
  if (const Body* const modalities = find(body, "modalities")) {
    if (*modalities != Body::array({"text"})) refuse_unsupported("modalities");
  }
}

/// llama.cpp's and OpenAI's forms: a list of [token, bias], or an object of "token": bias. A bias
/// of false: never.
std::vector<TokenLogit> logit_bias_of(const Body& body, int vocabulary) {
  const char* const name = "logit_bias";
  const Body* const biases = find(body, name);
  std::vector<TokenLogit> list;
  if (biases == nullptr) return list;
  const auto add = [&](const Body& token, const Body& bias) {
    if (!token.is_number_integer() || token < 0 || token >= vocabulary) {
      refuse(name,
             fmt::format("'{}' names tokens by their numbers, 0 to {}", name, vocabulary - 1));
    }
    const bool never = bias.is_boolean() && !bias.get<bool>();
    if (!never && !bias.is_number()) {
      refuse(name, fmt::format("a bias of '{}' is a number, or false", name));
    }
    const float value = never ? -std::numeric_limits<float>::infinity() : bias.get<float>();
    if (std::isnan(value) || value == std::numeric_limits<float>::infinity()) {
      refuse(name, fmt::format("a bias of '{}' is a number, or false", name));
    }
    list.push_back({token.get<Token>(), value});
  };
  if (biases->is_object()) {
    for (const auto& [key, bias] : biases->items()) {
      add(Body::parse(key, nullptr, /*allow_exceptions=*/false), bias);
    }
  } else if (biases->is_array()) {
    for (const Body& pair : *biases) {
      if (!pair.is_array() || pair.size() != 2) {
        refuse(name, fmt::format("'{}' is a list of [token, bias]", name));
      }
      add(pair[0], pair[1]);
    }
  } else {
    refuse(name, fmt::format("'{}' is a list of [token, bias], or an object", name));
  }
  return list;
}

/// llama.cpp's forms: a list of names, or a string of letters.
std::vector<Sampler> samplers_of(const Body& samplers) {
  const char* const name = "samplers";
  if (!samplers.is_array() && !samplers.is_string()) {
    refuse(name, fmt::format("'{}' is a list of names, or a string of letters", name));
  }
  try {
    if (samplers.is_string()) return samplers_of_letters(samplers.get<std::string>());
    std::vector<std::string> names;
    for (const Body& each : samplers) names.push_back(text_of(each, name));
    return samplers_of_names(names);
  } catch (const RequestError&) {
    throw;
  } catch (const Error& error) {
    refuse(name, fmt::format("'{}': {}", name, error.what()));
  }
}

std::vector<std::string> breakers_of(const Body& breakers) {
  const char* const name = "dry_sequence_breakers";
  if (!breakers.is_array() || breakers.size() > kMostStops) {
    refuse(name, fmt::format("'{}' is a list of at most {} strings", name, kMostStops));
  }
  std::vector<std::string> texts;
  for (const Body& each : breakers) {
    texts.push_back(text_of(each, name));
    if (texts.back().empty() || texts.back().size() > kMostBreakerBytes) {
      refuse(name, fmt::format("a string of '{}' has 1 to {} bytes", name, kMostBreakerBytes));
    }
  }
  return texts;
}

SamplingOptions sampling_of(const Body& body, SamplingOptions sampling, int vocabulary) {
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
  if (find(body, "logit_bias") != nullptr) {
    sampling.logit_bias = logit_bias_of(body, vocabulary);
  }
  real("dry_multiplier", sampling.dry.multiplier, 0);
  real("dry_base", sampling.dry.base, 1);
  whole("dry_allowed_length", sampling.dry.allowed_length, 0);
  whole("dry_penalty_last_n", sampling.dry.penalty_last_n, -1);
  if (const Body* const breakers = find(body, "dry_sequence_breakers")) {
    sampling.dry.sequence_breakers = breakers_of(*breakers);
  }
  whole("mirostat", sampling.mirostat.version, 0);
  if (sampling.mirostat.version > 2) refuse("mirostat", "'mirostat' must be 0, 1 or 2");
  real("mirostat_tau", sampling.mirostat.tau, 0);
  real("mirostat_eta", sampling.mirostat.eta, 0);
  real("adaptive_target", sampling.adaptive.target, -1e30, 1);
  real("adaptive_decay", sampling.adaptive.decay, 0, 0.99);
  if (const Body* const samplers = find(body, "samplers")) {
    sampling.samplers = samplers_of(*samplers);
  }
  whole("min_keep", sampling.min_keep, 0);
  whole("top_k", sampling.top_k, INT_MIN);
  whole("repeat_last_n", sampling.repeat_last_n, -1);
  // As in llama.cpp, a negative seed, like none, is another one each time.
  const std::int64_t seed = integer(body, "seed", INT64_MIN, INT64_MAX).value_or(-1);
  sampling.seed = seed >= 0 ? static_cast<std::uint64_t>(seed) : std::random_device()();
  return sampling;
}

/// OpenAI's two forms: of chats a flag and a number, of texts a number. -1: not asked for.
int likeliest_of(const Body& body, CompletionKind kind) {
  if (kind == CompletionKind::kChat) {
    const bool wanted = boolean(body, "logprobs").value_or(false);
    const auto count = integer(body, "top_logprobs", 0);
    if (count.value_or(0) > 0 && !wanted) refuse("top_logprobs", "'top_logprobs' needs 'logprobs'");
    if (count.value_or(0) > kMostLikeliest) {
      refuse("top_logprobs", fmt::format("'top_logprobs' must be at most {}", kMostLikeliest));
    }
    return wanted ? static_cast<int>(count.value_or(0)) : -1;
  }
  const Body* const value = find(body, "logprobs");
  if (value == nullptr || (value->is_boolean() && !value->get<bool>())) return -1;
  const auto count = integer(body, "logprobs", 0);
  if (*count > kMostLikeliest) {
    refuse("logprobs", fmt::format("'logprobs' must be at most {}", kMostLikeliest));
  }
  return static_cast<int>(*count);
}

Json usage_of(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

/// llama.cpp's names, and FIRP's own measure.
Json timings_of(const Usage& usage) {
  const DecodeStats& stats = usage.stats;
  const int read = usage.prompt_tokens - usage.cached_tokens;
  const long long from_drafts = stats.tokens - stats.forwards;
  return {{"cache_n", usage.cached_tokens},
          {"prompt_n", read},
          {"prompt_ms", 1e3 * stats.prefill_seconds},
          {"prompt_per_second", stats.prefill_seconds > 0 ? read / stats.prefill_seconds : 0},
          {"predicted_n", usage.completion_tokens},
          {"predicted_ms", 1e3 * stats.decode_seconds},
          {"predicted_per_second", stats.tokens_per_second()},
          {"draft_n", stats.drafted},
          {"draft_n_accepted", std::max(from_drafts, 0LL)},
          {"forward_passes", stats.forwards},
          {"tokens_per_forward_pass", stats.tokens_per_forward()}};
}

const char* name_of(FinishReason finish) {
  return finish == FinishReason::kStop ? "stop" : "length";
}

/// With what OpenAI's clients expect: text, and the bytes, since a token may be a part of a
/// character.
Json token_member(const ReplyToken& token) {
  Json bytes = Json::array();
  for (const char byte : token.bytes) bytes.push_back(static_cast<unsigned char>(byte));
  return {{"token", token.bytes}, {"logprob", token.log_probability}, {"bytes", std::move(bytes)}};
}

/// Null where they were not asked for.
Json logprobs_of(const ReplyHead& head, const std::vector<WrittenToken>& tokens) {
  if (!head.tells_tokens) return nullptr;
  if (head.kind == CompletionKind::kChat) {
    Json content = Json::array();
    for (const WrittenToken& each : tokens) {
      Json member = token_member(each.token);
      member["top_logprobs"] = Json::array();
      for (const ReplyToken& other : each.likeliest) {
        member["top_logprobs"].push_back(token_member(other));
      }
      if (each.drafted) member["drafted"] = true;
      content.push_back(std::move(member));
    }
    return {{"content", std::move(content)}, {"refusal", nullptr}};
  }
  Json texts = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  for (const WrittenToken& each : tokens) {
    texts.push_back(each.token.bytes);
    values.push_back(each.token.log_probability);
    offsets.push_back(each.offset);
    Json top = Json::object();
    for (const ReplyToken& other : each.likeliest) {
      if (!top.contains(other.bytes)) top[other.bytes] = other.log_probability;
    }
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(texts)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

Json reply(const ReplyHead& head, bool chunk, Json choices) {
  const char* const object = head.kind == CompletionKind::kText ? "text_completion"
                             : chunk                            ? "chat.completion.chunk"
                                                                : "chat.completion";
  return {{"id", head.id},
          {"object", object},
          {"created", head.created_seconds},
          {"model", head.model},
          {"choices", std::move(choices)}};
}

Json chunk(const ReplyHead& head, Json delta, const std::string& text, Json finish,
           const std::vector<WrittenToken>& tokens = {}) {
  Json choice = {{"index", 0}, {"finish_reason", std::move(finish)}};
  if (!tokens.empty()) choice["logprobs"] = logprobs_of(head, tokens);
  if (head.kind == CompletionKind::kChat) {
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = text;
  }
  return reply(head, /*chunk=*/true, Json::array({std::move(choice)}));
}

}  // namespace

CompletionRequest parse_request(std::string_view body, CompletionKind kind,
                                const SamplingOptions& defaults, int max_tokens, int vocabulary) {
  const Body parsed = parse_body(body);
  if (!parsed.is_object()) throw RequestError(kInvalidValue, "the body must be a JSON object");
  refuse_what_is_not_done(parsed);
  CompletionRequest request = {.kind = kind,
                               .sampling = sampling_of(parsed, defaults, vocabulary),
                               .likeliest = likeliest_of(parsed, kind),
                               .ignore_eos = boolean(parsed, "ignore_eos").value_or(false),
                               .max_tokens = max_tokens,
                               .stops = stops_of(parsed),
                               .stream = boolean(parsed, "stream").value_or(false)};
  if (kind == CompletionKind::kChat) {
    request.messages = messages_of(parsed);
  } else {
    request.prompt = prompt_of(parsed);
  }
  for (const char* const name : {"n_predict", "max_tokens", "max_completion_tokens"}) {
    // llama.cpp's -1: without a limit.
    const std::int64_t limit = integer(parsed, name, -1).value_or(max_tokens);
    if (limit == 0) refuse(name, fmt::format("'{}' must be at least 1", name));
    if (limit > 0 && limit < request.max_tokens) request.max_tokens = static_cast<int>(limit);
  }
  if (const Body* const options = find(parsed, "stream_options")) {
    if (!options->is_object()) refuse("stream_options", "'stream_options' must be an object");
    request.stream_usage = boolean(*options, "include_usage").value_or(false);
  }
  return request;
}

TokenizeRequest parse_tokenize_request(std::string_view body) {
  const Body parsed = parse_body(body);
  if (!parsed.is_object()) throw RequestError(kInvalidValue, "the body must be a JSON object");
  const Body* const content = find(parsed, "content");
  if (content == nullptr) refuse("content", "'content' is missing", kMissing);
  return {.content = text_of(*content, "content"),
          .add_special = boolean(parsed, "add_special").value_or(false),
          .parse_special = boolean(parsed, "parse_special").value_or(true),
          .with_pieces = boolean(parsed, "with_pieces").value_or(false)};
}

std::vector<Token> parse_detokenize_request(std::string_view body, int vocabulary) {
  const Body parsed = parse_body(body);
  if (!parsed.is_object()) throw RequestError(kInvalidValue, "the body must be a JSON object");
  const Body* const list = find(parsed, "tokens");
  if (list == nullptr) refuse("tokens", "'tokens' is missing", kMissing);
  if (!list->is_array()) refuse("tokens", "'tokens' must be a list of numbers");
  std::vector<Token> tokens;
  for (const Body& token : *list) {
    if (!token.is_number_integer() || token < 0 || token >= vocabulary) {
      refuse("tokens", fmt::format("'tokens' holds numbers of 0 to {}", vocabulary - 1));
    }
    tokens.push_back(token.get<Token>());
  }
  return tokens;
}

Json token_with_piece(Token token, const std::string& piece) {
  Json member = {{"id", token}};
  try {
    require_utf8(piece, "a piece");
    member["piece"] = piece;
  } catch (const Error&) {
    member["piece"] = Json::array();
    for (const char byte : piece) member["piece"].push_back(static_cast<unsigned char>(byte));
  }
  return member;
}

Json whole_reply(const ReplyHead& head, const ReplyPart& answer, FinishReason finish,
                 const Usage& usage) {
  Json choice = {{"index", 0},
                 {"finish_reason", name_of(finish)},
                 {"logprobs", logprobs_of(head, answer.tokens)}};
  if (head.kind == CompletionKind::kChat) {
    choice["message"] = {{"role", "assistant"}, {"content", answer.text}};
  } else {
    choice["text"] = answer.text;
  }
  Json whole = reply(head, /*chunk=*/false, Json::array({std::move(choice)}));
  whole["usage"] = usage_of(usage);
  whole["timings"] = timings_of(usage);
  return whole;
}

Json first_chunk(const ReplyHead& head) {
  return chunk(head, {{"role", "assistant"}, {"content", ""}}, "", nullptr);
}

Json text_chunk(const ReplyHead& head, const ReplyPart& part) {
  return chunk(head, {{"content", part.text}}, part.text, nullptr, part.tokens);
}

Json last_chunk(const ReplyHead& head, FinishReason finish, const Usage& usage) {
  Json last = chunk(head, Json::object(), "", name_of(finish));
  last["timings"] = timings_of(usage);
  return last;
}

Json usage_chunk(const ReplyHead& head, const Usage& usage) {
  Json last = reply(head, /*chunk=*/true, Json::array());
  last["usage"] = usage_of(usage);
  return last;
}

Json error_reply(const RequestError& error) {
  Json reply = {{"message", error.what()},
                {"type", error.kind.type},
                {"param", error.param.empty() ? Json() : Json(error.param)},
                {"code", error.kind.code}};
  reply.update(error.more);
  return {{"error", std::move(reply)}};
}

std::string to_bytes(const Json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace firp
