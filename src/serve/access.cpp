#include "serve/access.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "model/ggml_log.h"

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

/// In a time that does not depend on where they differ.
bool same_secret(std::string_view given, std::string_view secret) {
  unsigned char difference = given.size() == secret.size() ? 0 : 1;
  for (std::size_t i = 0; i < given.size() && !secret.empty(); ++i) {
    difference |= static_cast<unsigned char>(given[i] ^ secret[i % secret.size()]);
  }
  return difference == 0;
}

}  // namespace

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
  if (origin == "*") return origin;
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
  if (!rules.on_loopback || !rules.api_key.empty()) return true;
  const std::string name = lower_case(without_port(host));
  return name.find('.') == std::string::npos ? !name.starts_with('[') || is_loopback(name)
                                             : is_loopback(name) || is_listed(rules.hosts, name);
}

bool origin_is_allowed(const AccessRules& rules, std::string_view origin, std::string_view host) {
  const std::string lower = lower_case(origin);
  if (!rules.api_key.empty() || is_listed(rules.origins, lower)) return true;
  const std::size_t scheme = lower.find("://");
  if (scheme == std::string::npos) return false;
  const std::string_view authority = std::string_view(lower).substr(scheme + 3);
  return is_loopback(without_port(authority)) || authority == lower_case(host);
}

bool key_is_right(const AccessRules& rules, std::string_view authorization,
                  std::string_view api_key) {
  if (rules.api_key.empty()) return true;
  constexpr std::string_view kScheme = "bearer";
  if (lower_case(authorization.substr(0, kScheme.size())) == kScheme) {
    std::string_view given = authorization.substr(kScheme.size());
    const std::size_t begin = given.find_first_not_of(' ');
    if (begin != 0 && begin != std::string_view::npos &&
        same_secret(given.substr(begin), rules.api_key)) {
      return true;
    }
  }
  return same_secret(api_key, rules.api_key);
}

}  // namespace firp
