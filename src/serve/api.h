#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "decode/sampler.h"
#include "decode/session.h"
#include "model/vocabulary.h"

// The bodies of requests and replies: OpenAI's chat and text completions
// (https://platform.openai.com/docs/api-reference), with llama.cpp's further fields.

namespace firp {

using Json = nlohmann::ordered_json;  ///< members in the order in which they are written

/// A kind of error: the HTTP status, and the words that clients know it by: llama.cpp's types,
/// OpenAI's codes.
struct ErrorKind {
  int status;
  const char* type;
  const char* code;
};
inline constexpr ErrorKind kNotJson = {400, "invalid_request_error", "invalid_json"};
inline constexpr ErrorKind kInvalidValue = {400, "invalid_request_error", "invalid_value"};
inline constexpr ErrorKind kMissing = {400, "invalid_request_error", "missing_required_parameter"};
inline constexpr ErrorKind kUnsupported = {400, "invalid_request_error", "unsupported_parameter"};
inline constexpr ErrorKind kContextExceeded = {400, "exceed_context_size_error",
                                               "context_length_exceeded"};
inline constexpr ErrorKind kBadRequest = {400, "invalid_request_error", "bad_request"};
inline constexpr ErrorKind kInvalidKey = {401, "authentication_error", "invalid_api_key"};
inline constexpr ErrorKind kForbidden = {403, "permission_error", "forbidden"};
inline constexpr ErrorKind kNotFound = {404, "not_found_error", "unknown_url"};
inline constexpr ErrorKind kWrongMethod = {405, "invalid_request_error", "method_not_supported"};
inline constexpr ErrorKind kTooSlow = {408, "invalid_request_error", "request_timeout"};
inline constexpr ErrorKind kTooLarge = {413, "invalid_request_error", "request_too_large"};
inline constexpr ErrorKind kUrlTooLong = {414, "invalid_request_error", "url_too_long"};
inline constexpr ErrorKind kWrongEncoding = {415, "invalid_request_error", "unsupported_encoding"};
inline constexpr ErrorKind kHeadTooLarge = {431, "invalid_request_error", "headers_too_large"};
inline constexpr ErrorKind kInternal = {500, "server_error", "internal_error"};
inline constexpr ErrorKind kBusy = {503, "unavailable_error", "server_busy"};
inline constexpr ErrorKind kEnding = {503, "unavailable_error", "server_ending"};

/// A request that cannot be answered, and a message that says what to change.
struct RequestError : Error {
  RequestError(const ErrorKind& k, const std::string& message, std::string parameter = {},
               Json more_members = Json::object())
      : Error(message), kind(k), param(std::move(parameter)), more(std::move(more_members)) {}
  ErrorKind kind;
  std::string param;  ///< the field that is wrong; empty: none
  Json more;          ///< further members of the error
};

// What a body may have at most; what has more is refused before anything is done with it.
inline constexpr std::size_t kMostBodyBytes = std::size_t{32} << 20;
inline constexpr int kMostDepth = 32;               ///< of objects and lists in each other
inline constexpr std::size_t kMostValues = 100000;  ///< objects, lists, and what is in them
inline constexpr std::size_t kMostMessages = 10000;
inline constexpr std::size_t kMostStops = 64;
inline constexpr std::size_t kMostStopBytes = 1024;   ///< of each
inline constexpr std::size_t kMostBreakerBytes = 40;  ///< of one of DRY's
inline constexpr int kMostLikeliest = 20;             ///< tokens beside each that is written

enum class CompletionKind { kChat, kText };

struct CompletionRequest {
  CompletionKind kind;
  std::vector<ChatMessage> messages;  ///< of a chat
  std::string prompt;                 ///< of a text
  SamplingOptions sampling;
  int likeliest = -1;       ///< so many tokens beside each with their probabilities; -1: none
  bool ignore_eos = false;  ///< no end token is ever chosen
  int max_tokens;           ///< at least 1
  std::vector<std::string> stops;
  bool stream = false;
  bool stream_usage = false;  ///< a last chunk with the usage
};

/// `defaults`, `max_tokens`: where the request says nothing. `vocabulary`: tokens of it. Throws a
/// RequestError for what is no JSON, has a field of the wrong type or more of something than is
/// allowed, or asks for what would change the answer and is not done here. Fields that it does not
/// know are let pass, as clients send many.
CompletionRequest parse_request(std::string_view body, CompletionKind kind,
                                const SamplingOptions& defaults, int max_tokens, int vocabulary);

/// llama.cpp's /tokenize.
struct TokenizeRequest {
  std::string content;
  bool add_special = false;   ///< the vocabulary's BOS in front, where the file asks for it
  bool parse_special = true;  ///< what reads as a control token is one
  bool with_pieces = false;
};
TokenizeRequest parse_tokenize_request(std::string_view body);
/// The tokens of llama.cpp's /detokenize.
std::vector<Token> parse_detokenize_request(std::string_view body, int vocabulary);

/// A token as /tokenize tells it with its piece: a text, or the bytes of what is none.
Json token_with_piece(Token token, const std::string& piece);

enum class FinishReason { kStop, kLength };

/// A token as the reply tells it.
struct ReplyToken {
  std::string bytes;
  float log_probability;
};
struct WrittenToken {
  ReplyToken token;
  std::vector<ReplyToken> likeliest;  ///< in its place, best first
  int offset;                         ///< characters of the answer before it
  bool drafted;                       ///< an accepted draft
};

/// A part of an answer. The text of the last tokens may be in the next part, while it is not known
/// whether it begins a stop string.
struct ReplyPart {
  std::string text;
  std::vector<WrittenToken> tokens;  ///< where they were asked for
};

/// What an answer took.
struct Usage {
  int prompt_tokens = 0;
  int cached_tokens = 0;  ///< of the prompt, which other requests had read
  int completion_tokens = 0;
  DecodeStats stats;
};

/// What all replies to one request have in common.
struct ReplyHead {
  std::string id;
  std::int64_t created_seconds;  ///< since 1970
  std::string model;
  CompletionKind kind;
  bool tells_tokens = false;  ///< with their probabilities
};

Json whole_reply(const ReplyHead& head, const ReplyPart& answer, FinishReason finish,
                 const Usage& usage);

/// Chunks of a stream: the first (a chat's begins with the role), those with text, the last, and
/// where it was asked for, one more with the usage.
Json first_chunk(const ReplyHead& head);
Json text_chunk(const ReplyHead& head, const ReplyPart& part);
Json last_chunk(const ReplyHead& head, FinishReason finish, const Usage& usage);
Json usage_chunk(const ReplyHead& head, const Usage& usage);

Json error_reply(const RequestError& error);

/// The bytes to send. What is not UTF-8, in the text of a model that writes single bytes, becomes
/// U+FFFD.
std::string to_bytes(const Json& json);

}  // namespace firp
