#include "serve/server.h"

#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <functional>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/ggml_log.h"
#include "serve/access.h"
#include "serve/api.h"
#include "serve/http_server.h"
#include "serve/page.h"
#include "serve/scheduler.h"

namespace firp {
namespace {

constexpr const char* kJson = "application/json; charset=utf-8";
/// Of all requests that are being read and understood. Small ones are let in all the same, so that
/// who sends large ones slowly keeps nobody out.
constexpr std::size_t kMostBodyBytesTogether = std::size_t{128} << 20;
constexpr std::size_t kSmallBodyBytes = std::size_t{256} << 10;

std::string new_id(CompletionKind kind) {
  std::random_device random;
  return fmt::format("{}-{:08x}{:08x}{:08x}", kind == CompletionKind::kChat ? "chatcmpl" : "cmpl",
                     random(), random(), random());
}

std::int64_t now_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

void reply(httplib::Response& response, const Json& body, int status = 200) {
  response.status = status;
  response.set_content(to_bytes(body), kJson);
}

void reply(httplib::Response& response, const RequestError& error) {
  if (error.kind.status == kBusy.status) response.set_header("Retry-After", "1");
  reply(response, error_reply(error), error.kind.status);
}

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

/// An event of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html).
bool send_data(httplib::DataSink& sink, std::string_view data) {
  const std::string event = fmt::format("data: {}\n\n", data);
  return sink.write(event.data(), event.size());
}
bool send_event(httplib::DataSink& sink, const Json& data) {
  return send_data(sink, to_bytes(data));
}

/// The request's body, for as long as it is looked at; all that there are share a bound.
class BodyBytes {
 public:
  BodyBytes(std::atomic<std::size_t>& together, const httplib::Request& request,
            httplib::Response& response, const httplib::ContentReader& read)
      : together_(together) {
    if (request.is_multipart_form_data()) {
      throw RequestError(kWrongEncoding, "the body must be JSON, not a form of several parts");
    }
    if (const std::string coding = request.get_header_value("Content-Encoding");
        !coding.empty() && coding != "identity") {
      throw RequestError(kWrongEncoding,
                         fmt::format("the body must not be packed (it is {})", one_line(coding)));
    }
    if (request.get_header_value_count("Transfer-Encoding") > 1 ||
        request.get_header_value("Transfer-Encoding").find(',') != std::string::npos) {
      throw RequestError(kWrongEncoding, "the body may come in chunks, and packed no further");
    }
    // Without either there is none, whatever comes until the connection is closed.
    if (!request.has_header("Content-Length") && !request.has_header("Transfer-Encoding")) return;
    // Not by the library, which would wait for all of it first.
    if (request.get_header_value_u64("Content-Length") > kMostBodyBytes) refuse_large();
    const bool complete = read([&](const char* part, std::size_t size) {
      const std::size_t all = together_.fetch_add(size) + size;
      counted_ += size;
      full_ = all > kMostBodyBytesTogether && counted_ > kSmallBodyBytes;
      if (full_ || counted_ > kMostBodyBytes) return false;
      bytes_.append(part, size);
      return true;
    });
    if (complete) return;
    const bool large = counted_ > kMostBodyBytes || response.status == kTooLarge.status;
    release();
    if (large) refuse_large();
    if (full_) throw RequestError(kBusy, "other requests fill the memory; ask again later");
    if (HttpServer::bound_hit() == HttpServer::Bound::kTime) {
      throw RequestError(kTooSlow, fmt::format("the request was not there after {} seconds",
                                               HttpServer::kRequestSeconds));
    }
    throw RequestError(kBadRequest, "the body ended early, or its framing is wrong");
  }
  ~BodyBytes() { release(); }
  BodyBytes(const BodyBytes&) = delete;
  BodyBytes& operator=(const BodyBytes&) = delete;

  std::string_view text() const { return bytes_; }

 private:
  [[noreturn]] static void refuse_large() {
    throw RequestError(kTooLarge, fmt::format("the body is larger than {} bytes", kMostBodyBytes));
  }
  void release() { together_ -= std::exchange(counted_, 0); }

  std::atomic<std::size_t>& together_;
  std::size_t counted_ = 0;
  bool full_ = false;
  std::string bytes_;
};

struct Route {
  const char* path;
  const char* method;
};
constexpr Route kRoutes[] = {{"/", "GET"},
                             {"/page.css", "GET"},
                             {"/page.js", "GET"},
                             {"/health", "GET"},
                             {"/v1/models", "GET"},
                             {"/tokenize", "POST"},
                             {"/detokenize", "POST"},
                             {"/v1/chat/completions", "POST"},
                             {"/v1/completions", "POST"}};

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

}  // namespace

struct Server::State {
  State(BatchDecoder& b, const Vocabulary& v, const DecodeOptions& d, ServerOptions o)
      : engine(b.engine()),
        vocabulary(v),
        decoding(d),
        options(std::move(o)),
        rules{.api_key = options.api_key,
              .origins = options.allowed_origins,
              .hosts = options.allowed_hosts},
        scheduler(b, v, d, options.parallel) {}

  void route();
  /// Refuses who may not use the server, and what it does not have, before a body is read.
  void admit(const httplib::Request& request, httplib::Response& response) const;
  void complete(CompletionKind kind, const httplib::Request& request, httplib::Response& response,
                const httplib::ContentReader& read);
  Json tokenize(const TokenizeRequest& request) const;
  std::vector<Token> prompt_of(const CompletionRequest& request) const;
  /// Made for the first request that needs them.
  const TokenTexts& texts() {
    std::call_once(texts_made, [this] { made_texts = token_texts(vocabulary); });
    return made_texts;
  }
  RequestError error_of(const std::exception_ptr& thrown) const;
  bool is_unwanted() const { return stopping || HttpServer::client_has_left(); }
  /// Where standard error takes it: a log that nobody reads must not stop the server.
  void log(const std::string& path, const std::string& what) const;
  void log(const std::string& path, const Usage& usage) const;

  Engine& engine;
  const Vocabulary& vocabulary;
  const DecodeOptions decoding;
  const ServerOptions options;
  AccessRules rules;  ///< complete once the port is open
  Scheduler scheduler;
  std::atomic<bool> stopping = false;
  std::atomic<std::size_t> body_bytes = 0;
  mutable std::mutex log_mutex;
  std::once_flag texts_made;
  TokenTexts made_texts;
  HttpServer http;
};

void Server::State::log(const std::string& path, const std::string& what) const {
  if (!options.log) return;
  const std::string line = fmt::format("{}: {}\n", one_line(path), one_line(what));
  const std::lock_guard lock(log_mutex);  // between the look and the write
  pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  if (poll(&out, 1, 0) != 1 || (out.revents & POLLOUT) == 0) return;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

void Server::State::log(const std::string& path, const Usage& usage) const {
  const DecodeStats& stats = usage.stats;
  log(path, fmt::format("{} tokens, {:.1f} tokens/s, {:.2f} tokens per forward pass; prompt: {} "
                        "tokens, {} of them held, {:.2f} s",
                        stats.tokens, stats.tokens_per_second(), stats.tokens_per_forward(),
                        usage.prompt_tokens, usage.cached_tokens, stats.prefill_seconds));
}

void Server::State::admit(const httplib::Request& request, httplib::Response& response) const {
  if (request.get_header_value_count("Host") > 1 || request.get_header_value_count("Origin") > 1) {
    throw RequestError(kBadRequest, "a request has one Host and one Origin");
  }
  const std::string host = request.get_header_value("Host");
  if (!host_is_allowed(rules, host)) {
    throw RequestError(kForbidden, fmt::format("this server is not called {} (firp serve "
                                               "--allow-host NAME, or --api-key KEY)",
                                               one_line(host)));
  }
  if (request.has_header("Origin")) {
    const std::string origin = request.get_header_value("Origin");
    if (!origin_is_allowed(rules, origin, host)) {
      throw RequestError(kForbidden, fmt::format("pages of {} may not use this server (firp serve "
                                                 "--allow-origin URL, or --api-key KEY)",
                                                 one_line(origin)));
    }
    response.set_header("Access-Control-Allow-Origin", origin);
    response.set_header("Vary", "Origin");
  }
  if (request.method == "OPTIONS") {
    response.set_header("Allow", "GET, HEAD, POST, OPTIONS");
    response.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS");
    if (request.has_header("Access-Control-Request-Headers")) {
      response.set_header("Access-Control-Allow-Headers",
                          request.get_header_value("Access-Control-Request-Headers"));
    }
    if (request.has_header("Access-Control-Request-Private-Network")) {
      response.set_header("Access-Control-Allow-Private-Network", "true");
    }
    response.set_header("Access-Control-Max-Age", "600");
    return;
  }
  const Route* const route = std::ranges::find(kRoutes, request.path, &Route::path);
  if (route == std::end(kRoutes)) {
    throw RequestError(kNotFound, fmt::format("there is no {} {}", one_line(request.method),
                                              one_line(request.path)));
  }
  const bool matches = request.method == route->method ||
                       (request.method == "HEAD" && std::string_view(route->method) == "GET");
  if (!matches) {
    response.set_header(
        "Allow", std::string_view(route->method) == "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS");
    throw RequestError(kWrongMethod, fmt::format("{} is asked for by {}, not {}", route->path,
                                                 route->method, one_line(request.method)));
  }
  // The page asks for the key itself.
  static constexpr std::string_view kOpen[] = {"/", "/page.css", "/page.js", "/health"};
  const bool open = std::ranges::count(kOpen, request.path) > 0;
  if (!open && !key_is_right(rules, request.get_header_value("Authorization"),
                             request.get_header_value("X-API-Key"))) {
    throw RequestError(kInvalidKey, "the API key is missing or wrong (Authorization: Bearer KEY)");
  }
}

Json Server::State::tokenize(const TokenizeRequest& request) const {
  const int context = engine.options().context;
  PromptText text = {request.content};
  if (!request.parse_special) text.literal.push_back({0, request.content.size()});
  std::vector<Token> tokens;
  try {
    vocabulary.require_fits(request.content.size(), context);  // before it takes its time
    tokens = vocabulary.tokenize(text, request.add_special);
  } catch (const Error& error) {
    throw RequestError(kInvalidValue, error.what(), "content");
  }
  Json list = Json::array();
  for (const Token token : tokens) {
    list.push_back(request.with_pieces
                       ? token_with_piece(token, vocabulary.piece(token, /*show_special=*/true))
                       : Json(token));
  }
  return {{"tokens", std::move(list)}};
}

std::vector<Token> Server::State::prompt_of(const CompletionRequest& request) const {
  const bool chat = request.kind == CompletionKind::kChat;
  if (chat && !vocabulary.knows_chat_template()) {
    throw RequestError(kUnsupported,
                       fmt::format("{}; ask /v1/completions",
                                   vocabulary.has_chat_template()
                                       ? "libllama does not know this model's chat template"
                                       : "this model has no chat template"));
  }
  const int context = engine.options().context;
  std::size_t bytes = request.prompt.size();
  for (const ChatMessage& message : request.messages) bytes += message.content.size();
  const char* const param = chat ? "messages" : "prompt";
  try {
    vocabulary.require_fits(bytes, context);
  } catch (const Error& error) {
    throw RequestError(kContextExceeded,
                       fmt::format("{}; this model's maximum context length is {} tokens here",
                                   error.what(), context),
                       param, {{"n_ctx", context}});
  }
  std::vector<Token> tokens;
  try {
    tokens = chat ? vocabulary.tokenize(
                        vocabulary.apply_chat_template(request.messages, /*open_answer=*/true),
                        /*add_bos=*/true)
                  : vocabulary.tokenize(request.prompt, /*add_bos=*/true);
  } catch (const Error& error) {
    throw RequestError(kInvalidValue, error.what(), param);
  }
  if (std::ssize(tokens) >= context) {
    throw RequestError(
        kContextExceeded,
        fmt::format("the prompt has {} tokens, and one must be left for the answer; this model's "
                    "maximum context length is {} tokens here (firp serve -c)",
                    tokens.size(), context),
        param, {{"n_prompt_tokens", tokens.size()}, {"n_ctx", context}});
  }
  if (tokens.empty()) throw RequestError(kInvalidValue, "the prompt is empty", "prompt");
  return tokens;
}

RequestError Server::State::error_of(const std::exception_ptr& thrown) const {
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

void Server::State::complete(CompletionKind kind, const httplib::Request& http_request,
                             httplib::Response& response, const httplib::ContentReader& read) {
  CompletionRequest request = [&] {
    const BodyBytes body(body_bytes, http_request, response, read);
    return parse_request(body.text(), kind, decoding.sampling, options.max_tokens,
                         vocabulary.size());
  }();
  DryOptions& dry = request.sampling.dry;
  if (dry.is_on() && !dry.texts) dry.texts = texts();
  if (request.ignore_eos) forbid(request.sampling, vocabulary.end_tokens());
  std::vector<Token> prompt = prompt_of(request);
  const ReplyHead head = {new_id(kind), now_seconds(), options.model_name, kind,
                          /*tells_tokens=*/request.likeliest >= 0};
  const std::string path = http_request.path;
  if (!request.stream) {
    ReplyPart whole;
    const Scheduler::Answer answer = scheduler.complete(
        prompt, request,
        [&](const ReplyPart& part) {
          whole.text += part.text;
          whole.tokens.insert(whole.tokens.end(), part.tokens.begin(), part.tokens.end());
        },
        [this] { return is_unwanted(); });
    log(path, answer.usage);
    return reply(response, whole_reply(head, whole, answer.finish, answer.usage));
  }
  scheduler.refuse_if_full();  // while the status can still say so
  const auto stream = [this, request = std::move(request), prompt = std::move(prompt), head,
                       path](httplib::DataSink& sink) {
    bool listening = true;
    const auto send = [&](const Json& event) { listening = listening && send_event(sink, event); };
    try {
      if (request.kind == CompletionKind::kChat) send(first_chunk(head));
      const Scheduler::Answer answer = scheduler.complete(
          prompt, request, [&](const ReplyPart& part) { send(text_chunk(head, part)); },
          [&] { return !listening || is_unwanted(); });
      log(path, answer.usage);
      send(last_chunk(head, answer.finish, answer.usage));
      if (request.stream_usage) send(usage_chunk(head, answer.usage));
      if (listening) send_data(sink, "[DONE]");
    } catch (...) {
      const RequestError error = error_of(std::current_exception());
      if (HttpServer::client_has_left()) {
        log(path, "the client left");
        return false;
      }
      log(path, error.what());
      send(error_reply(error));
    }
    sink.done();
    return listening;
  };
  if (http_request.version == "HTTP/1.0") {  // which knows no chunks: the body ends as it closes
    HttpServer::close_after_answer();
    response.set_content_provider(
        "text/event-stream",
        [stream](std::size_t, httplib::DataSink& sink) { return stream(sink); });
  } else {
    response.set_chunked_content_provider(
        "text/event-stream",
        [stream](std::size_t, httplib::DataSink& sink) { return stream(sink); });
  }
}

void Server::State::route() {
  http.Get("/", [](const httplib::Request&, httplib::Response& response) {
    response.set_header("Content-Security-Policy", kPageRules);
    reply_page(response, kPage, "text/html; charset=utf-8");
  });
  http.Get("/page.css", [](const httplib::Request&, httplib::Response& response) {
    reply_page(response, kPageStyle, "text/css; charset=utf-8");
  });
  http.Get("/page.js", [](const httplib::Request&, httplib::Response& response) {
    reply_page(response, kPageScript, "text/javascript; charset=utf-8");
  });
  http.Get("/health", [](const httplib::Request&, httplib::Response& response) {
    reply(response, {{"status", "ok"}});
  });
  const Json model = {{"id", options.model_name},
                      {"object", "model"},
                      {"created", now_seconds()},
                      {"owned_by", "firp"},
                      {"meta",
                       {{"n_ctx", engine.options().context},
                        {"n_vocab", vocabulary.size()},
                        {"n_embd", engine.config().hidden_size}}}};
  http.Get("/v1/models", [model](const httplib::Request&, httplib::Response& response) {
    reply(response, {{"object", "list"}, {"data", Json::array({model})}});
  });
  http.Post("/tokenize", [this](const httplib::Request& request, httplib::Response& response,
                                const httplib::ContentReader& read) {
    const BodyBytes body(body_bytes, request, response, read);
    reply(response, tokenize(parse_tokenize_request(body.text())));
  });
  http.Post("/detokenize", [this](const httplib::Request& request, httplib::Response& response,
                                  const httplib::ContentReader& read) {
    const BodyBytes body(body_bytes, request, response, read);
    std::string text;
    for (const Token token : parse_detokenize_request(body.text(), vocabulary.size())) {
      text += vocabulary.piece(token, /*show_special=*/true);
    }
    reply(response, {{"content", text}});
  });
  http.Post("/v1/chat/completions",
            [this](const httplib::Request& request, httplib::Response& response,
                   const httplib::ContentReader& read) {
              complete(CompletionKind::kChat, request, response, read);
            });
  http.Post("/v1/completions", [this](const httplib::Request& request, httplib::Response& response,
                                      const httplib::ContentReader& read) {
    complete(CompletionKind::kText, request, response, read);
  });

  http.set_default_headers({{"Server", "firp"}});
  http.set_payload_max_length(kMostBodyBytes);
  http.set_pre_routing_handler(
      [this](const httplib::Request& request, httplib::Response& response) {
        using Handled = httplib::Server::HandlerResponse;
        try {
          admit(request, response);
        } catch (const RequestError& error) {
          log(request.path, fmt::format("{}, {}", error.kind.status, error.what()));
          reply(response, error);
          return Handled::Handled;
        }
        if (request.method != "OPTIONS") return Handled::Unhandled;
        response.status = 204;
        return Handled::Handled;
      });
  http.set_exception_handler([this](const httplib::Request& request, httplib::Response& response,
                                    const std::exception_ptr& thrown) {
    const RequestError error = error_of(thrown);
    log(request.path, HttpServer::client_has_left()
                          ? "the client left"
                          : fmt::format("{}, {}", error.kind.status, error.what()));
    reply(response, error);
  });
  http.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (response.body.empty()) reply(response, firp::error_of(request, response.status));
  });
}

Server::Server(BatchDecoder& decoder, const Vocabulary& vocabulary, const DecodeOptions& decoding,
               ServerOptions options)
    : state_(std::make_unique<State>(decoder, vocabulary, decoding, std::move(options))) {
  state_->route();
}
Server::~Server() = default;

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

int Server::bind() {
  const ServerOptions& o = state_->options;
  std::string host = o.host;
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  int port = o.port;
  if (port == 0) {
    port = state_->http.bind_to_any_port(host);
  } else if (!state_->http.bind_to_port(host, port)) {
    port = -1;
  }
  if (port < 0) {
    throw Error(
        fmt::format("cannot listen at {}:{}: {}", url_host(o.host), o.port, why_not(host, o.port)));
  }
  state_->rules.on_loopback = state_->http.listens_on_loopback();
  return port;
}

bool Server::is_open() const { return !state_->rules.on_loopback && state_->rules.api_key.empty(); }

void Server::run() { state_->http.listen_after_bind(); }

void Server::stop() {
  state_->stopping = true;
  state_->http.stop_serving();
}

}  // namespace firp
