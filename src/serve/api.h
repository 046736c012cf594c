#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "decode/sampler.h"
#include "decode/session.h"
#include "model/error.h"
#include "model/vocabulary.h"

// The bodies of requests and replies: OpenAI's chat and text completions
// (https://platform.openai.com/docs/api-reference), with llama.cpp's further fields.

namespace firp {

using Json = nlohmann::ordered_json;  ///< members in the order in which they are written

/// A request that cannot be answered: the HTTP status, and a message that says what to change.
struct RequestError : Error {
  RequestError(int http_status, const std::string& message) : Error(message), status(http_status) {}
  int status;
};

enum class CompletionKind { kChat, kText };

struct CompletionRequest {
  CompletionKind kind;
  std::vector<ChatMessage> messages;  ///< of a chat
  std::string prompt;                 ///< of a text
  SamplingOptions sampling;
  int max_tokens;  ///< at least 1
  std::vector<std::string> stops;
  bool stream = false;
  bool stream_usage = false;  ///< a last chunk with the usage
};

/// `defaults`, `max_tokens`: where the request says nothing. Throws a RequestError for what is no
/// JSON, has a field of the wrong type, or asks for what this server does not do. Fields that it
/// does not know are let pass, as clients send many.
CompletionRequest parse_request(std::string_view body, CompletionKind kind,
                                const SamplingOptions& defaults, int max_tokens);

enum class FinishReason { kStop, kLength };

/// What an answer took.
struct Usage {
  int prompt_tokens = 0;
  int cached_tokens = 0;  ///< of the prompt, which a slot still held
  int completion_tokens = 0;
  DecodeStats stats;
};

/// What all replies to one request have in common.
struct ReplyHead {
  std::string id;
  std::int64_t created_seconds;  ///< since 1970
  std::string model;
  CompletionKind kind;
};

Json whole_reply(const ReplyHead& head, const std::string& text, FinishReason finish,
                 const Usage& usage);

/// Chunks of a stream: the first (a chat's begins with the role), those with text, the last, and
/// where it was asked for, one more with the usage.
Json first_chunk(const ReplyHead& head);
Json text_chunk(const ReplyHead& head, const std::string& text);
Json last_chunk(const ReplyHead& head, FinishReason finish, const Usage& usage);
Json usage_chunk(const ReplyHead& head, const Usage& usage);

Json error_reply(int status, const std::string& message);

/// The bytes to send. What is not UTF-8, in the text of a model that writes single bytes, becomes
/// U+FFFD.
std::string to_bytes(const Json& json);

}  // namespace firp
