#include "serve/fields.h"

#include <fmt/format.h>

#include <cmath>

#include "model/ggml_log.h"
#include "model/vocabulary.h"

namespace firp {

void refuse(const char* name, const std::string& message, const ErrorKind& kind) {
  throw RequestError(kind, message, name);
}
void refuse_unsupported(const char* name) {
  refuse(name, fmt::format("'{}' is not supported", name), kUnsupported);
}

Json parse_body(std::string_view body) {
  try {
    require_utf8(body, "the body");
  } catch (const Error& error) {
    throw RequestError(kNotJson, error.what());
  }
  std::size_t values = 0;
  std::vector<std::size_t> members;  // of the objects and lists around what comes
  const auto count = [&](int depth, Json::parse_event_t event, const Json&) {
    using Event = Json::parse_event_t;
    const bool nests = event == Event::object_start || event == Event::array_start;
    if (nests) {
      if (depth >= kMostDepth) {
        throw RequestError(
            kTooLarge, fmt::format("the body has objects and lists more than {} deep", kMostDepth));
      }
      members.push_back(0);
    } else if (event == Event::object_end || event == Event::array_end) {
      members.pop_back();
    } else if (event == Event::key && ++members.back() > kMostMembers) {
      throw RequestError(kTooLarge,
                         fmt::format("an object has more than {} members", kMostMembers));
    }
    if ((nests || event == Event::value) && ++values > kMostValues) {
      throw RequestError(kTooLarge, fmt::format("the body has more than {} values", kMostValues));
    }
    return true;
  };
  Json parsed;
  try {
    parsed = Json::parse(body, count);
  } catch (const Json::parse_error& error) {
    throw RequestError(kNotJson, fmt::format("the body is not JSON (at byte {})", error.byte));
  } catch (const Json::exception&) {  // a number that no type holds
    throw RequestError(kNotJson, "the body is not JSON: a number is out of range");
  }
  if (!parsed.is_object()) throw RequestError(kInvalidValue, "the body must be a JSON object");
  return parsed;
}

const Json* find(const Json& object, const char* name) {
  const auto at = object.find(name);
  return at == object.end() || at->is_null() ? nullptr : &*at;
}

std::optional<double> number(const Json& object, const char* name, double least, double most) {
  const Json* const value = find(object, name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) refuse(name, fmt::format("'{}' must be a number", name));
  const auto found = value->get<double>();
  if (!(found >= least && found <= most)) {
    refuse(name, most < 1e9 ? fmt::format("'{}' must be between {} and {}", name, least, most)
                            : fmt::format("'{}' must be at least {}", name, least));
  }
  return found;
}

std::optional<std::int64_t> integer(const Json& object, const char* name, std::int64_t least,
                                    std::int64_t most) {
  const Json* const value = find(object, name);
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

std::optional<bool> boolean(const Json& object, const char* name) {
  const Json* const value = find(object, name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) refuse(name, fmt::format("'{}' must be true or false", name));
  return value->get<bool>();
}

std::vector<std::string> strings(const Json& object, const char* name, std::size_t most) {
  const Json* const value = find(object, name);
  std::vector<std::string> list;
  if (value == nullptr) return list;
  if (!value->is_array()) return {text_of(*value, name)};
  if (value->size() > most) refuse(name, fmt::format("'{}' may hold {} strings", name, most));
  for (const Json& each : *value) list.push_back(text_of(each, name));
  return list;
}

std::string text_of(const Json& value, const char* name) {
  if (!value.is_string()) refuse(name, fmt::format("'{}' must be a string", name));
  return value.get<std::string>();
}

std::string optional_text(const Json& body, const char* name) {
  const Json* const value = find(body, name);
  return value == nullptr ? "" : text_of(*value, name);
}

bool is_off(const Json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

}  // namespace firp
