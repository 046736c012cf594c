#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "base/error.h"

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
inline constexpr ErrorKind kModelFailed = {500, "server_error", "model_failed"};
inline constexpr ErrorKind kNotImplemented = {501, "not_supported_error", "not_supported"};
inline constexpr ErrorKind kBusy = {503, "unavailable_error", "server_busy"};
inline constexpr ErrorKind kEnding = {503, "unavailable_error", "server_ending"};
inline constexpr ErrorKind kTimedOut = {504, "timeout_error", "request_timed_out"};

/// A request that cannot be answered, and a message that says what to change.
struct RequestError : Error {
  RequestError(const ErrorKind& k, const std::string& message, std::string parameter = {},
               Json more_members = Json::object())
      : Error(message), kind(k), param(std::move(parameter)), more(std::move(more_members)) {}
  ErrorKind kind;
  std::string param;  ///< the field that is wrong; empty: none
  Json more;          ///< further members of the error
};

}  // namespace firp
