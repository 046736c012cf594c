#include "serve/front.h"

#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>
#include <utility>

#include "model/ggml_log.h"
#include "serve/messages.h"
#include "serve/page.h"
#include "serve/predict.h"
#include "serve/reply.h"
#include "serve/tls.h"

namespace firp {
namespace {

/// What browsers let the page do: whatever a model writes, nothing of it runs, and nothing is
/// fetched from elsewhere.
constexpr const char* kPageRules =
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

void reply_page(httplib::Response& response, std::string_view part, const char* type) {
  response.set_header("Cache-Control", "no-cache");  // the three belong together
  response.set_header("X-Content-Type-Options", "nosniff");
  response.set_content(part.data(), part.size(), type);
}

void page_style(const httplib::Request&, httplib::Response& response, const Front::Reader*) {
  reply_page(response, kPageStyle, "text/css; charset=utf-8");
}

void page_script(const httplib::Request&, httplib::Response& response, const Front::Reader*) {
  reply_page(response, kPageScript, "text/javascript; charset=utf-8");
}

void health(const httplib::Request&, httplib::Response& response, const Front::Reader*) {
  reply(response, {{"status", "ok"}});
}

/// A path may end in a parameter: "/slots/:slot".
bool is_path_of(const std::string& route, const std::string& path) {
  const std::size_t parameter = route.find(':');
  return parameter == std::string::npos ? path == route
                                        : path.starts_with(route.substr(0, parameter));
}

/// What is wrong with a request that never came to a handler.
RequestError error_of(const httplib::Request& request, int status) {
  using Bound = HttpServer::Bound;
  if (HttpServer::bound_hit() == Bound::kHeadBytes) {
    return {kHeadTooLarge, fmt::format("the request line and headers have more than {} bytes",
                                       HttpServer::kMostHeadBytes)};
  }
  if (HttpServer::bound_hit() == Bound::kTime) {
    return {kTooSlow,
            fmt::format("the headers were not there after {} seconds", HttpServer::kHeadSeconds)};
  }
  if (status == kNotFound.status) {
    return {kNotFound,
            fmt::format("there is no {} {}", one_line(request.method), one_line(request.path))};
  }
  if (status == kTooLarge.status) {
    return {kTooLarge, fmt::format("the body is larger than {} bytes", kMostBodyBytes)};
  }
  if (status == kUrlTooLong.status) {
    return {kUrlTooLong,
            fmt::format("the URL is longer than {} bytes", CPPHTTPLIB_REQUEST_URI_MAX_LENGTH)};
  }
  ErrorKind kind = kBadRequest;
  kind.status = status;
  return {kind, fmt::format("the request is not understood (there may be {} headers, of {} bytes)",
                            CPPHTTPLIB_HEADER_MAX_COUNT, CPPHTTPLIB_HEADER_MAX_LENGTH)};
}

LoggedRequest logged_request(const httplib::Request& request) {
  return {.method = request.method, .path = request.path, .client = request.remote_addr};
}

/// Where a response keeps what the log is to tell of its request.
constexpr const char* kLogged = "logged";

}  // namespace

std::int64_t now_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

void reply(httplib::Response& response, const Json& body, int status) {
  response.status = status;
  response.set_content(to_bytes(body), kJson);
}

void reply(httplib::Response& response, const std::string& path, const RequestError& error) {
  if (error.kind.status == kBusy.status) response.set_header("Retry-After", "1");
  reply(response, path.starts_with("/v1/messages") ? messages_error(error) : error_reply(error),
        error.kind.status);
}

SharedLogged logged_of(const httplib::Request& request, httplib::Response& response) {
  if (const SharedLogged* const there = response.user_data.get<SharedLogged>(kLogged)) {
    return *there;
  }
  const auto logged = std::make_shared<LoggedRequest>(logged_request(request));
  response.user_data.set(kLogged, logged);
  return logged;
}

void Front::log(LoggedRequest& request, int status) const {
  using Seconds = std::chrono::duration<double>;
  if (options.log == LogFormat::kNone) return;
  request.status = status;
  request.seconds = Seconds(std::chrono::steady_clock::now() - HttpServer::request_began()).count();
  const Seconds now = std::chrono::system_clock::now().time_since_epoch();
  write_line(options.log == LogFormat::kJson ? json_line(request, now.count())
                                             : text_line(request));
}

void Front::log_line(const std::string& model, const std::string& line) const {
  if (options.log == LogFormat::kNone) return;
  write_line(options.log == LogFormat::kJson
                 ? to_bytes({{"model", model}, {"line", line}})
                 : fmt::format("{}: {}", one_line(model), one_line(line)));
}

void Front::write_line(std::string line) const {
  if (line.empty()) return;
  line += '\n';
  const std::lock_guard lock(log_mutex);  // between the look and the write
  pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  if (poll(&out, 1, 0) != 1 || (out.revents & POLLOUT) == 0) return;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

bool Front::is_unwanted() const {
  if (stopping || HttpServer::client_has_left()) return true;
  const auto taken = std::chrono::steady_clock::now() - HttpServer::request_began();
  if (options.request_seconds > 0 && taken > std::chrono::seconds(options.request_seconds)) {
    throw RequestError(kTimedOut,
                       fmt::format("the answer was not complete after {} seconds (firp serve "
                                   "--request-timeout)",
                                   options.request_seconds));
  }
  return false;
}

void Front::admit(const httplib::Request& request, httplib::Response& response) const {
  if (request.get_header_value_count("Host") > 1 || request.get_header_value_count("Origin") > 1) {
    throw RequestError(kBadRequest, "a request has one Host and one Origin");
  }
  const std::string host = request.get_header_value("Host");
  if (!host_is_allowed(rules, host)) {
    throw RequestError(kForbidden, fmt::format("this server is not called {} (firp serve "
                                               "--allowed-hosts NAME, or --api-key KEY)",
                                               one_line(host)));
  }
  if (request.has_header("Origin")) {
    const std::string origin = request.get_header_value("Origin");
    const bool allowed = origin_is_allowed(rules, origin, host);
    if (!allowed && request.method != "OPTIONS") {
      throw RequestError(kForbidden, fmt::format("pages of {} may not use this server (firp serve "
                                                 "--cors-origins URL)",
                                                 one_line(origin)));
    }
    response.set_header("Vary", "Origin");
    if (allowed) {
      response.set_header("Access-Control-Allow-Origin", origin);
      if (options.cors_credentials) {
        response.set_header("Access-Control-Allow-Credentials", "true");
      }
    } else {
      return;  // an answer without that header is a refusal to a browser that asks beforehand
    }
  }
  if (request.method == "OPTIONS") {
    response.set_header("Allow", "GET, HEAD, POST, OPTIONS");
    response.set_header("Access-Control-Allow-Methods", options.cors_methods);
    if (!options.cors_headers.empty()) {
      response.set_header("Access-Control-Allow-Headers", options.cors_headers);
    } else if (request.has_header("Access-Control-Request-Headers")) {
      response.set_header("Access-Control-Allow-Headers",
                          request.get_header_value("Access-Control-Request-Headers"));
    }
    if (request.has_header("Access-Control-Request-Private-Network")) {
      response.set_header("Access-Control-Allow-Private-Network", "true");
    }
    response.set_header("Access-Control-Max-Age", "600");
    return;
  }
  const auto route = std::ranges::find_if(
      routes, [&](const Route& each) { return is_path_of(each.path, request.path); });
  if (route == routes.end()) {
    throw RequestError(kNotFound, fmt::format("there is no {} {}", one_line(request.method),
                                              one_line(request.path)));
  }
  const bool matches =
      request.method == route->method || (request.method == "HEAD" && route->method == "GET");
  if (!matches) {
    response.set_header("Allow", route->method == "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS");
    throw RequestError(kWrongMethod, fmt::format("{} is asked for by {}, not {}", route->path,
                                                 route->method, one_line(request.method)));
  }
  if (!route->is_open && !key_is_right(rules, request.get_header_value("Authorization"),
                                       request.get_header_value("X-API-Key"))) {
    throw RequestError(kInvalidKey, "the API key is missing or wrong (Authorization: Bearer KEY)");
  }
}

RequestError Front::error_of(const std::exception_ptr& thrown) const {
  try {
    std::rethrow_exception(thrown);
  } catch (const RequestError& error) {
    return error;
  } catch (const Cancelled&) {
    return {kEnding, "the server is ending"};
  } catch (const std::bad_alloc&) {
    return {kInternal, "out of memory"};
  } catch (const std::exception& error) {
    return {kInternal, error.what()};
  } catch (...) {
    return {kInternal, "an error that does not say what it is"};
  }
}

void Front::add(Route route) {
  if (route.method == "GET") {
    http.Get(route.path,
             [answer = route.answer](const httplib::Request& request, httplib::Response& response) {
               answer(request, response, nullptr);
             });
  } else {
    http.Post(route.path,
              [answer = route.answer](const httplib::Request& request, httplib::Response& response,
                                      const Reader& read) { answer(request, response, &read); });
  }
  routes.push_back(std::move(route));
}

Front::Front(ServerOptions o)
    : options(std::move(o)),
      rules{.api_keys = options.api_keys,
            .origins = options.allowed_origins,
            .hosts = options.allowed_hosts} {
  add({"/", "GET",
       [this](const httplib::Request&, httplib::Response& response, const Reader*) {
         if (!options.has_page) throw RequestError(kNotFound, "this server has no page (--ui)");
         response.set_header("Content-Security-Policy", kPageRules);
         reply_page(response, kPage, "text/html; charset=utf-8");
       },
       true});
  add({"/page.css", "GET", page_style, true});
  add({"/page.js", "GET", page_script, true});
  add({"/health", "GET", health, true});
  add({"/v1/health", "GET", health, true});
  http.set_logger([this](const httplib::Request& request, const httplib::Response& response) {
    const SharedLogged* const there = response.user_data.get<SharedLogged>(kLogged);
    LoggedRequest plain = logged_request(request);
    LoggedRequest& logged = there == nullptr ? plain : **there;
    if (!logged.streams) log(logged, response.status);
  });
  http.set_default_headers({{"Server", "firp"}});
  http.set_payload_max_length(kMostBodyBytes);
  http.set_pre_routing_handler(
      [this](const httplib::Request& request, httplib::Response& response) {
        using Handled = httplib::Server::HandlerResponse;
        try {
          admit(request, response);
        } catch (const RequestError& error) {
          logged_of(request, response)->error = error.what();
          reply(response, request.path, error);
          return Handled::Handled;
        }
        if (request.method != "OPTIONS") return Handled::Unhandled;
        response.status = 200;
        return Handled::Handled;
      });
  http.set_exception_handler([this](const httplib::Request& request, httplib::Response& response,
                                    const std::exception_ptr& thrown) {
    const RequestError error = error_of(thrown);
    LoggedRequest& logged = *logged_of(request, response);
    logged.client_left = HttpServer::client_has_left();
    logged.error = error.what();
    reply(response, request.path, error);
  });
  http.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (response.body.empty()) {
      reply(response, request.path, firp::error_of(request, response.status));
    }
  });
}

namespace {

/// Why nothing can listen there.
std::string why_not(const std::string& host, int port) {
  addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  const int problem = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (problem != 0) return fmt::format("{} (--host)", gai_strerror(problem));
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  const int probe = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  setsockopt(probe, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  const bool bound = bind(probe, found->ai_addr, found->ai_addrlen) == 0 && listen(probe, 1) == 0;
  const int error = bound ? 0 : errno;
  if (probe >= 0) close(probe);
  if (error == EADDRINUSE) return "the port is taken (--port)";
  if (error == EACCES) return "this port is for root alone (--port)";
  if (error == EADDRNOTAVAIL) return "this machine does not have that address (--host)";
  return error == 0 ? "try again" : std::strerror(error);
}

}  // namespace

int Front::bind() {
  const ServerOptions& o = options;
  if (o.ssl_key_file.empty() != o.ssl_cert_file.empty()) {
    throw Error("--ssl-key-file and --ssl-cert-file are needed together");
  }
  if (o.vertex) add_vertex_routes(*this, *o.vertex);
  if (!o.ssl_key_file.empty()) http.use_tls(tls_context(o.ssl_key_file, o.ssl_cert_file));
  int port = o.port;
  if (o.listens_at_file()) {
    http.bind_to_file(o.host);
    port = 0;
  } else {
    const auto bare = [](const std::string& host) {
      const bool has_brackets = host.starts_with('[') && host.ends_with(']');
      return has_brackets ? host.substr(1, host.size() - 2) : host;
    };
    const auto refuse = [&](const std::string& host, int at) {
      throw Error(
          fmt::format("cannot listen at {}:{}: {}", url_host(host), at, why_not(bare(host), at)));
    };
    if (!o.more_hosts.empty()) http.set_ipv6_v6only(true);  // :: leaves room for 0.0.0.0
    if (port == 0) {
      port = http.bind_to_any_port(bare(o.host));
    } else if (!http.bind_to_port(bare(o.host), port)) {
      port = -1;
    }
    if (port < 0) refuse(o.host, o.port);
    for (const std::string& each : o.more_hosts) {
      if (!http.also_bind_to(bare(each), port)) refuse(each, port);
    }
  }
  rules.on_loopback = http.listens_on_loopback();
  return port;
}

bool Front::is_open() const { return !rules.on_loopback && rules.api_keys.empty(); }

void Front::run() { http.serve(); }

void Front::stop() {
  stopping = true;
  http.stop_serving();
}

}  // namespace firp
