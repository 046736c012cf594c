#include "serve/access.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/text_input.h"

namespace firp {
namespace {

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
}

/// "localhost:8080" without its port.
std::string_view without_port(std::string_view authority) {
  const std::size_t colon = authority.rfind(':');
  const std::size_t bracket = authority.rfind(']');
  const bool has_port =
      colon != std::string_view::npos && (bracket == std::string_view::npos || bracket < colon);
  return has_port ? authority.substr(0, colon) : authority;
}

bool is_listed(const std::vector<std::string>& list, std::string_view text) {
  return std::ranges::any_of(list,
                             [&](const std::string& each) { return each == "*" || each == text; });
}

void require_sendable(const std::string& key, const std::string& where) {
  constexpr std::size_t kLongest = 4096;  // a header holds twice as much
  const bool sendable = key.size() <= kLongest && key.front() != ' ' && key.back() != ' ' &&
                        std::ranges::none_of(key, [](unsigned char c) { return c < 0x20; });
  if (sendable) return;
  throw Error(fmt::format(
      "{} has a key that begins or ends with a space, has a control character or more than {} "
      "bytes: no client can send it",
      where, kLongest));
}

/// In a time that does not depend on where they differ.
bool same_secret(std::string_view given, std::string_view secret) {
  unsigned char difference = given.size() == secret.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size() && !secret.empty(); ++i) {
    difference |= static_cast<unsigned char>(given[i] ^ secret[i % secret.size()]);
  }
  return difference == 0;
}

}  // namespace

std::vector<std::string> api_keys_from(const std::string& list, const std::string& where) {
  std::vector<std::string> keys;
  for (std::size_t begin = 0, end; begin <= list.size(); begin = end + 1) {
    end = std::min(list.find(',', begin), list.size());
    if (end == begin) continue;
    keys.push_back(list.substr(begin, end - begin));
    require_sendable(keys.back(), where);
  }
  // One that was meant to be there, as an unset variable of a script, must not open the server.
  if (keys.empty()) {
    throw Error(
        fmt::format("{} is empty: give a key, or leave it out for a server without one", where));
  }
  return keys;
}

std::vector<std::string> api_keys_in(const std::filesystem::path& file) {
  TextInput input("the API keys", file);
  std::vector<std::string> keys;
  for (std::string line; input.next_line(line);) {
    if (line.empty() || line.starts_with('#')) continue;
    require_sendable(line, file.string());
    keys.push_back(line);
  }
  if (keys.empty()) {
    throw Error(fmt::format("{} has no key: one a line (--api-key-file)", file.string()));
  }
  return keys;
}

std::string url_host(const std::string& host) {
  const bool bare_ipv6 = host.find(':') != std::string::npos && !host.starts_with('[');
  return bare_ipv6 ? "[" + host + "]" : host;
}

bool is_loopback(std::string_view host) {
  const std::string name = lower_case(host);
  if (name == "localhost" || name == "localhost." || name.ends_with(".localhost")) return true;
  if (name.starts_with('[') && name.ends_with(']')) {
    in6_addr address = {};
    const std::string text = name.substr(1, name.size() - 2);
    if (inet_pton(AF_INET6, text.c_str(), &address) != 1) return false;
    return IN6_IS_ADDR_LOOPBACK(&address) ||
           (IN6_IS_ADDR_V4MAPPED(&address) && address.s6_addr[12] == 127);
  }
  in_addr address = {};
  return inet_pton(AF_INET, name.c_str(), &address) == 1 && ntohl(address.s_addr) >> 24 == 127;
}

std::string origin_from(const std::string& given) {
  std::string origin = lower_case(given);
  if (origin == "*" || origin == "localhost") return origin;
  if (origin.ends_with('/')) origin.pop_back();
  const std::size_t scheme = origin.find("://");
  if (scheme == std::string::npos || scheme == 0 || scheme + 3 == origin.size() ||
      origin.find('/', scheme + 3) != std::string::npos) {
    throw Error(fmt::format("'{}' is no origin, as https://my.example or http://10.0.0.5:3000",
                            one_line(given)));
  }
  return origin;
}

std::string host_from(const std::string& given) {
  const std::string host = lower_case(without_port(given));
  if (host.empty() || given.find('/') != std::string::npos) {
    throw Error(fmt::format("'{}' is no host name, as my.example", one_line(given)));
  }
  return host;
}

bool host_is_allowed(const AccessRules& rules, std::string_view host) {
  if (!rules.on_loopback || !rules.api_keys.empty()) return true;
  const std::string name = lower_case(without_port(host));
  return name.find('.') == std::string::npos ? !name.starts_with('[') || is_loopback(name)
                                             : is_loopback(name) || is_listed(rules.hosts, name);
}

bool origin_is_allowed(const AccessRules& rules, std::string_view origin, std::string_view host) {
  const std::string lower = lower_case(origin);
  const bool all = !rules.api_keys.empty() && rules.origins.empty();
  if (all || is_listed(rules.origins, lower)) return true;
  const std::size_t scheme = lower.find("://");
  if (scheme == std::string::npos) return false;
  const std::string_view authority = std::string_view(lower).substr(scheme + 3);
  return is_loopback(without_port(authority)) || authority == lower_case(host);
}

bool key_is_right(const AccessRules& rules, std::string_view authorization,
                  std::string_view api_key) {
  if (rules.api_keys.empty()) return true;
  constexpr std::string_view kScheme = "bearer";
  std::string_view bearer;
  if (lower_case(authorization.substr(0, kScheme.size())) == kScheme) {
    const std::string_view rest = authorization.substr(kScheme.size());
    const std::size_t begin = rest.find_first_not_of(' ');
    if (begin != 0 && begin != std::string_view::npos) bearer = rest.substr(begin);
  }
  bool right = false;  // after all of them: the time does not tell which
  for (const std::string& each : rules.api_keys) {
    right |= same_secret(bearer, each);
    right |= same_secret(api_key, each);
  }
  return right;
}

}  // namespace firp
