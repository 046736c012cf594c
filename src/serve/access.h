#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace firp {

/// Who may use a server. A browser sends what any page asks of it, with the page's origin: without
/// a key, only pages of this machine, or of the server itself, may. A page can also have its own
/// name point at this machine (DNS rebinding): its requests carry that name as their Host.
struct AccessRules {
  bool on_loopback = true;            ///< listens to this machine alone
  std::vector<std::string> api_keys;  ///< of which a request brings one; empty: none is asked for
  /// That may use it, too, of origin_from(); "*": all. Empty, where a key is asked for: all.
  std::vector<std::string> origins;
  std::vector<std::string> hosts;  ///< names besides those of this machine, of host_from()
};

/// The keys of a list with commas, or of a file: one a line, less lines that begin with #. An Error
/// where there is none, or one that no client can send. `where` names the list in messages.
std::vector<std::string> api_keys_from(const std::string& list, const std::string& where);
std::vector<std::string> api_keys_in(const std::filesystem::path& file);

/// As browsers write an origin, or a host: small letters, no slash at the end, no port of a host.
/// "localhost" is every origin of this machine. An Error for what can be none.
std::string origin_from(const std::string& given);
std::string host_from(const std::string& given);

/// A host as it is in a URL: an IPv6 address has brackets there.
std::string url_host(const std::string& host);

/// Whether a host, as it is in a URL ("localhost", "127.0.0.1", "[::1]"), is this machine.
bool is_loopback(std::string_view host);

/// `host`: the header, "localhost:8080"; empty where there was none. A name without a dot cannot be
/// a stranger's.
bool host_is_allowed(const AccessRules& rules, std::string_view host);

/// `origin`: the header, "http://localhost:3000"; browsers send "null" for pages without one.
bool origin_is_allowed(const AccessRules& rules, std::string_view origin, std::string_view host);

/// Whether the headers Authorization ("Bearer KEY") or X-API-Key bring a key that is asked for.
bool key_is_right(const AccessRules& rules, std::string_view authorization,
                  std::string_view api_key);

}  // namespace firp
