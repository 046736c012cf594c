#include "serve/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <optional>
#include <random>

namespace firp {
namespace {

constexpr std::size_t kMostStops = 16;

[[noreturn]] void refuse(const std::string& message) { throw RequestError(400, message); }

/// The member, unless it is missing or null.
const Json* find(const Json& object, const char* name) {
  const auto at = object.find(name);
  return at == object.end() || at->is_null() ? nullptr : &*at;
}

std::optional<double> number(const Json& object, const char* name, double least, double most) {
  const Json* const value = find(object, name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) refuse(fmt::format("'{}' must be a number", name));
  const auto found = value->get<double>();
  if (!(found >= least && found <= most)) {
    refuse(most < 1e9 ? fmt::format("'{}' must be between {} and {}", name, least, most)
                      : fmt::format("'{}' must be at least {}", name, least));
  }
  return found;
}

std::optional<std::int64_t> integer(const Json& object, const char* name, std::int64_t least) {
  const Json* const value = find(object, name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) refuse(fmt::format("'{}' must be a whole number", name));
  const auto found = value->get<std::int64_t>();
  if (found < least) refuse(fmt::format("'{}' must be at least {}", name, least));
  return found;
}

std::optional<bool> boolean(const Json& object, const char* name) {
  const Json* const value = find(object, name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) refuse(fmt::format("'{}' must be true or false", name));
  return value->get<bool>();
}

std::string utf8(const Json& value, const char* name) {
  if (!value.is_string()) refuse(fmt::format("'{}' must be a string", name));
  return value.get<std::string>();
}

/// A string, or OpenAI's list of parts, of which only text is understood.
std::string content_of(const Json& message) {
  const Json* const content = find(message, "content");
  if (content == nullptr) return {};
  if (!content->is_array()) return utf8(*content, "content");
  std::string text;
  for (const Json& part : *content) {
    const Json* const type = part.is_object() ? find(part, "type") : nullptr;
    if (type == nullptr || *type != "text" || !part.contains("text")) {
      refuse("'content' may hold parts of type text only");
    }
    text += utf8(part["text"], "text");
  }
  return text;
}

std::vector<ChatMessage> messages_of(const Json& body) {
  const Json* const messages = find(body, "messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    refuse("'messages' must be a list of at least one message");
  }
  std::vector<ChatMessage> list;
  for (const Json& message : *messages) {
    if (!message.is_object() || !message.contains("role")) {
      refuse("a message must be an object with 'role' and 'content'");
    }
    std::string role = utf8(message["role"], "role");
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant") {
      refuse(fmt::format("there is no role '{}' here: system, user or assistant", role));
    }
    list.push_back({std::move(role), content_of(message)});
  }
  return list;
}

std::vector<std::string> stops_of(const Json& body) {
  const Json* const stop = find(body, "stop");
  std::vector<std::string> stops;
  if (stop == nullptr) return stops;
  if (stop->is_array()) {
    for (const Json& each : *stop) stops.push_back(utf8(each, "stop"));
  } else {
    stops.push_back(utf8(*stop, "stop"));
  }
  if (stops.size() > kMostStops) refuse(fmt::format("'stop' may hold {} strings", kMostStops));
  for (const std::string& each : stops) {
    if (each.empty()) refuse("'stop' must not hold an empty string");
  }
  return stops;
}

/// What would change the answer and is not done here must not be let pass.
void refuse_what_is_not_done(const Json& body) {
  if (integer(body, "n", 1).value_or(1) != 1) refuse("'n' must be 1: one answer a request");
  if (integer(body, "best_of", 1).value_or(1) != 1) refuse("'best_of' must be 1");
  for (const char* const name : {"presence_penalty", "frequency_penalty"}) {
    if (number(body, name, -2, 2).value_or(0) != 0) {
      refuse(fmt::format("'{}' is not supported; there is 'repeat_penalty'", name));
    }
  }
  for (const char* const name : {"tools", "functions", "logit_bias", "grammar", "json_schema"}) {
    const Json* const value = find(body, name);
    if (value != nullptr && !value->empty()) refuse(fmt::format("'{}' is not supported", name));
  }
  for (const char* const name : {"logprobs", "top_logprobs", "echo", "suffix"}) {
    const Json* const value = find(body, name);
    if (value != nullptr && *value != false && *value != 0 && *value != "") {
      refuse(fmt::format("'{}' is not supported", name));
    }
  }
  const Json* const format = find(body, "response_format");
  if (format != nullptr && (!format->is_object() || format->value("type", "") != "text")) {
    refuse("'response_format' may be of type text only");
  }
}

SamplingOptions sampling_of(const Json& body, SamplingOptions sampling) {
  const auto real = [&](const char* name, float& to, double least, double most = 1e30) {
    to = static_cast<float>(number(body, name, least, most).value_or(to));
  };
  const auto whole = [&](const char* name, int& to) {
    to = static_cast<int>(std::min<std::int64_t>(integer(body, name, 0).value_or(to), INT_MAX));
  };
  real("temperature", sampling.temperature, 0);
  real("top_p", sampling.top_p, 0, 1);
  real("min_p", sampling.min_p, 0, 1);
  real("repeat_penalty", sampling.repeat_penalty, 1e-3);
  whole("top_k", sampling.top_k);
  whole("repeat_last_n", sampling.repeat_last_n);
  // As in llama.cpp, a negative seed, like none, is another one each time.
  const std::int64_t seed = integer(body, "seed", INT64_MIN).value_or(-1);
  sampling.seed = seed >= 0 ? static_cast<std::uint64_t>(seed) : std::random_device()();
  return sampling;
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

Json chunk(const ReplyHead& head, Json delta, const std::string& text, Json finish) {
  Json choice = {{"index", 0}, {"finish_reason", std::move(finish)}};
  if (head.kind == CompletionKind::kChat) {
    choice["delta"] = std::move(delta);
  } else {
    choice["text"] = text;
  }
  return reply(head, /*chunk=*/true, Json::array({std::move(choice)}));
}

}  // namespace

CompletionRequest parse_request(std::string_view body, CompletionKind kind,
                                const SamplingOptions& defaults, int max_tokens) {
  const Json parsed = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) refuse("the body is not JSON");
  if (!parsed.is_object()) refuse("the body must be a JSON object");
  refuse_what_is_not_done(parsed);
  CompletionRequest request = {.kind = kind,
                               .sampling = sampling_of(parsed, defaults),
                               .max_tokens = max_tokens,
                               .stops = stops_of(parsed),
                               .stream = boolean(parsed, "stream").value_or(false)};
  if (kind == CompletionKind::kChat) {
    request.messages = messages_of(parsed);
  } else {
    if (!parsed.contains("prompt")) refuse("'prompt' is missing");
    request.prompt = utf8(parsed["prompt"], "prompt");
    if (request.prompt.empty()) refuse("'prompt' is empty");
  }
  for (const char* const name : {"n_predict", "max_tokens", "max_completion_tokens"}) {
    // llama.cpp's -1: without a limit.
    const std::int64_t limit = integer(parsed, name, -1).value_or(max_tokens);
    if (limit == 0) refuse(fmt::format("'{}' must be at least 1", name));
    if (limit > 0 && limit < request.max_tokens) request.max_tokens = static_cast<int>(limit);
  }
  if (const Json* const options = find(parsed, "stream_options")) {
    if (!options->is_object()) refuse("'stream_options' must be an object");
    request.stream_usage = boolean(*options, "include_usage").value_or(false);
  }
  return request;
}

Json whole_reply(const ReplyHead& head, const std::string& text, FinishReason finish,
                 const Usage& usage) {
  Json choice = {{"index", 0}, {"finish_reason", name_of(finish)}};
  if (head.kind == CompletionKind::kChat) {
    choice["message"] = {{"role", "assistant"}, {"content", text}};
  } else {
    choice["text"] = text;
  }
  Json whole = reply(head, /*chunk=*/false, Json::array({std::move(choice)}));
  whole["usage"] = usage_of(usage);
  whole["timings"] = timings_of(usage);
  return whole;
}

Json first_chunk(const ReplyHead& head) {
  return chunk(head, {{"role", "assistant"}, {"content", ""}}, "", nullptr);
}

Json text_chunk(const ReplyHead& head, const std::string& text) {
  return chunk(head, {{"content", text}}, text, nullptr);
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

Json error_reply(int status, const std::string& message) {
  const char* const type = status == 401   ? "authentication_error"
                           : status == 404 ? "not_found_error"
                           : status < 500  ? "invalid_request_error"
                                           : "server_error";
  return {{"error", {{"message", message}, {"type", type}, {"code", status}}}};
}

std::string to_bytes(const Json& value) {
  return value.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace firp
