#pragma once

#include <httplib.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "serve/access.h"
#include "serve/errors.h"
#include "serve/http_server.h"
#include "serve/server.h"

namespace firp {

inline constexpr const char* kJson = "application/json; charset=utf-8";

std::int64_t now_seconds();

void reply(httplib::Response& response, const Json& body, int status = 200);
/// In the form that clients of the path expect.
void reply(httplib::Response& response, const std::string& path, const RequestError& error);

/// The front of a server, whatever is behind: its port, who may use it, what it can be asked for,
/// errors, the page, and the log.
struct Front {
  using Reader = httplib::ContentReader;
  struct Route {
    std::string path;
    std::string method;
    /// The reader is that of a POST's body.
    std::function<void(const httplib::Request&, httplib::Response&, const Reader*)> answer;
    bool is_open = false;  ///< asks for no key: the page asks for it itself
  };

  explicit Front(ServerOptions o);
  Front(const Front&) = delete;
  Front& operator=(const Front&) = delete;

  void add(Route route);
  /// Refuses who may not use the server, and what it does not have, before a body is read.
  void admit(const httplib::Request& request, httplib::Response& response) const;
  RequestError error_of(const std::exception_ptr& thrown) const;
  bool is_unwanted() const { return stopping || HttpServer::client_has_left(); }
  /// Where standard error takes it: a log that nobody reads must not stop the server.
  void log(const std::string& path, const std::string& what) const;

  // As Server has them.
  int bind();
  bool is_open() const;
  void run();
  void stop();

  const ServerOptions options;
  AccessRules rules;  ///< complete once the port is open
  std::vector<Route> routes;
  const std::int64_t start_seconds = now_seconds();
  std::atomic<bool> stopping = false;
  std::atomic<std::size_t> body_bytes = 0;  ///< of all BodyBytes
  mutable std::mutex log_mutex;
  HttpServer http;
};

}  // namespace firp
