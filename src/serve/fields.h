#pragma once

#include <climits>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "serve/errors.h"

// Reading the members of a request's body: what is of the wrong type or out of range is a
// RequestError that names the field.

namespace firp {

// What a body may have at most; what has more is refused before anything is done with it.
inline constexpr std::size_t kMostBodyBytes = std::size_t{32} << 20;
inline constexpr int kMostDepth = 32;               ///< of objects and lists in each other
inline constexpr std::size_t kMostValues = 100000;  ///< objects, lists, and what is in them
/// Of one object: reading it takes time that grows with their square, as they keep their order.
inline constexpr std::size_t kMostMembers = 8192;

[[noreturn]] void refuse(const char* name, const std::string& message,
                         const ErrorKind& kind = kInvalidValue);
[[noreturn]] void refuse_unsupported(const char* name);

/// The body, if it is a JSON object and no larger than one may be.
Json parse_body(std::string_view body);

/// The member, unless it is missing or null.
const Json* find(const Json& object, const char* name);

// nullopt: the member is missing or null.
std::optional<double> number(const Json& object, const char* name, double least, double most);
/// Also one written as 16.0, as some languages do. What is more than `most` counts as that.
std::optional<std::int64_t> integer(const Json& object, const char* name, std::int64_t least,
                                    std::int64_t most = INT_MAX);
std::optional<bool> boolean(const Json& object, const char* name);
/// A string, or as many as `most` in a list.
std::vector<std::string> strings(const Json& object, const char* name, std::size_t most);

/// The value, which is a string.
std::string text_of(const Json& value, const char* name);

/// The member, a string; empty where it is missing.
std::string optional_text(const Json& object, const char* name);

/// Says nothing, or "no": null, false, 0, nothing in it.
bool is_off(const Json& value);

}  // namespace firp
