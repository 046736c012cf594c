#pragma once

#include <httplib.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "serve/access.h"
#include "serve/errors.h"
#include "serve/http_server.h"
#include "serve/request_log.h"
#include "serve/server.h"

namespace firp {

inline constexpr const char* kJson = "application/json; charset=utf-8";

std::int64_t now_seconds();

void reply(httplib::Response& response, const Json& body, int status = 200);
/// In the form that clients of the path expect.
void reply(httplib::Response& response, const std::string& path, const RequestError& error);

/// What the log is to tell of a request; made for the first who asks for it.
using SharedLogged = std::shared_ptr<LoggedRequest>;
SharedLogged logged_of(const httplib::Request& request, httplib::Response& response);

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
  /// Whether the answer to the calling thread's request is to end. A RequestError where it has
  /// taken as long as it may.
  bool is_unwanted() const;
  void log(LoggedRequest& request, int status) const;
  /// What the process of a model has written.
  void log_line(const std::string& model, const std::string& line) const;

  // As Server has them.
  int bind();
  bool is_open() const;
  void run();
  void stop();

  /// Where standard error takes it: a log that nobody reads must not stop the server.
  void write_line(std::string line) const;

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
