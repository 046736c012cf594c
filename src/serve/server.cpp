#include "serve/server.h"

#include <fmt/format.h>
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "model/error.h"
#include "serve/api.h"
#include "serve/page.h"
#include "serve/slots.h"

namespace firp {
namespace {

constexpr const char* kJson = "application/json; charset=utf-8";
constexpr std::size_t kMostBodyBytes = std::size_t{32} << 20;
constexpr int kIdleSeconds = 2;  ///< that a connection is kept open for a next request
/// Connections at once. Those beyond the slots wait for one, and a question after the server's
/// health must not wait behind them.
constexpr int kConnections = 256;

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

/// An event of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html).
bool send_data(httplib::DataSink& sink, std::string_view data) {
  const std::string event = fmt::format("data: {}\n\n", data);
  return sink.write(event.data(), event.size());
}
bool send_event(httplib::DataSink& sink, const Json& data) {
  return send_data(sink, to_bytes(data));
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

struct Server::State {
  State(Engine& e, const Vocabulary& v, const DecodeOptions& d, ServerOptions o)
      : engine(e),
        vocabulary(v),
        decoding(d),
        options(std::move(o)),
        slots(e, v, d, options.slots) {}

  void route();
  void complete(CompletionKind kind, const httplib::Request& request, httplib::Response& response);
  std::vector<Token> prompt_of(const CompletionRequest& request) const;
  void log(const std::string& path, const std::string& what) const {
    if (options.log) fmt::print(stderr, "{}: {}\n", path, what);
  }
  void log(const std::string& path, const Usage& usage) const;

  Engine& engine;
  const Vocabulary& vocabulary;
  const DecodeOptions decoding;
  const ServerOptions options;
  Slots slots;
  httplib::Server http;
  std::atomic<bool> stopping = false;
};

void Server::State::log(const std::string& path, const Usage& usage) const {
  const DecodeStats& stats = usage.stats;
  log(path, fmt::format("{} tokens, {:.1f} tokens/s, {:.2f} tokens per forward pass; prompt: {} "
                        "tokens, {} of them held, {:.2f} s",
                        stats.tokens, stats.tokens_per_second(), stats.tokens_per_forward(),
                        usage.prompt_tokens, usage.cached_tokens, stats.prefill_seconds));
}

std::vector<Token> Server::State::prompt_of(const CompletionRequest& request) const {
  const bool chat = request.kind == CompletionKind::kChat;
  if (chat && !vocabulary.knows_chat_template()) {
    throw RequestError(400, fmt::format("{}; ask /v1/completions",
                                        vocabulary.has_chat_template()
                                            ? "libllama does not know this model's chat template"
                                            : "this model has no chat template"));
  }
  const int context = engine.options().context;
  std::size_t bytes = request.prompt.size();
  for (const ChatMessage& message : request.messages) bytes += message.content.size();
  std::vector<Token> tokens;
  try {
    vocabulary.require_fits(bytes, context);
    tokens = chat ? vocabulary.tokenize(
                        vocabulary.apply_chat_template(request.messages, /*open_answer=*/true),
                        /*add_bos=*/true)
                  : vocabulary.tokenize(request.prompt, /*add_bos=*/true);
  } catch (const Error& error) {
    throw RequestError(400, error.what());
  }
  if (std::ssize(tokens) >= context) {
    throw RequestError(400, fmt::format("the prompt has {} tokens; with at least one of the answer "
                                        "it must fit into a context of {} (firp serve -c)",
                                        tokens.size(), context));
  }
  if (tokens.empty()) throw RequestError(400, "the prompt is empty");
  return tokens;
}

void Server::State::complete(CompletionKind kind, const httplib::Request& http_request,
                             httplib::Response& response) {
  CompletionRequest request =
      parse_request(http_request.body, kind, decoding.sampling, options.max_tokens);
  std::vector<Token> prompt = prompt_of(request);
  const ReplyHead head = {new_id(kind), now_seconds(), options.model_name, kind};
  const std::string path = http_request.path;
  if (!request.stream) {
    std::string text;
    const Slots::Answer answer = slots.complete(
        prompt, request,
        [&](std::string_view part) {
          text += part;
          return true;
        },
        stopping);
    log(path, answer.usage);
    return reply(response, whole_reply(head, text, answer.finish, answer.usage));
  }
  response.set_chunked_content_provider(
      "text/event-stream", [this, request = std::move(request), prompt = std::move(prompt), head,
                            path](std::size_t, httplib::DataSink& sink) {
        try {
          bool listening =
              request.kind == CompletionKind::kText || send_event(sink, first_chunk(head));
          const Slots::Answer answer = slots.complete(
              prompt, request,
              [&](std::string_view part) {
                listening = listening && send_event(sink, text_chunk(head, std::string(part)));
                return listening;
              },
              stopping);
          log(path, answer.usage);
          if (!listening) return false;
          send_event(sink, last_chunk(head, answer.finish, answer.usage));
          if (request.stream_usage) send_event(sink, usage_chunk(head, answer.usage));
          send_data(sink, "[DONE]");
        } catch (const std::exception& error) {
          log(path, error.what());
          send_event(sink, error_reply(500, error.what()));
        }
        sink.done();
        return true;
      });
}

void Server::State::route() {
  http.Get("/", [](const httplib::Request&, httplib::Response& response) {
    response.set_content(kPage.data(), kPage.size(), "text/html; charset=utf-8");
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
  http.Post("/v1/chat/completions", [this](const auto& request, auto& response) {
    complete(CompletionKind::kChat, request, response);
  });
  http.Post("/v1/completions", [this](const auto& request, auto& response) {
    complete(CompletionKind::kText, request, response);
  });
  http.Options(".*", [](const httplib::Request&, httplib::Response& response) {
    response.set_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
    response.set_header("Access-Control-Allow-Headers", "Content-Type, Authorization");
    response.status = 204;
  });

  http.set_default_headers({{"Access-Control-Allow-Origin", "*"}, {"Server", "firp"}});
  http.set_pre_routing_handler(
      [this](const httplib::Request& request, httplib::Response& response) {
        using Handled = httplib::Server::HandlerResponse;
        // The page asks for the key itself.
        const bool open = request.path == "/" || request.path == "/health";
        if (options.api_key.empty() || open || request.method == "OPTIONS") {
          return Handled::Unhandled;
        }
        const std::string given = request.get_header_value("Authorization");
        if (same_secret(given, "Bearer " + options.api_key)) return Handled::Unhandled;
        reply(response,
              error_reply(401, "the API key is missing or wrong (Authorization: Bearer KEY)"), 401);
        return Handled::Handled;
      });
  http.set_exception_handler([this](const httplib::Request& request, httplib::Response& response,
                                    const std::exception_ptr& thrown) {
    int status = 500;
    std::string message = "internal error";
    try {
      std::rethrow_exception(thrown);
    } catch (const RequestError& error) {
      status = error.status;
      message = error.what();
    } catch (const std::bad_alloc&) {
      message = "out of memory";
    } catch (const std::exception& error) {
      message = error.what();
    }
    log(request.path, fmt::format("{}, {}", status, message));
    reply(response, error_reply(status, message), status);
  });
  http.set_error_handler([](const httplib::Request& request, httplib::Response& response) {
    if (!response.body.empty()) return;
    const std::string message =
        response.status == 404   ? fmt::format("there is no {} {}", request.method, request.path)
        : response.status == 413 ? fmt::format("the body is larger than {} bytes", kMostBodyBytes)
                                 : std::string("the request is not understood");
    reply(response, error_reply(response.status, message), response.status);
  });
  http.set_payload_max_length(kMostBodyBytes);
  http.set_keep_alive_timeout(kIdleSeconds);
  http.set_tcp_nodelay(true);  // a token is a small packet
  // Without SO_REUSEPORT, which is the library's default: two servers would share a port unnoticed.
  http.set_socket_options([](socket_t socket) {
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  http.new_task_queue = [] { return new httplib::ThreadPool(kConnections); };
}

Server::Server(Engine& engine, const Vocabulary& vocabulary, const DecodeOptions& decoding,
               ServerOptions options)
    : state_(std::make_unique<State>(engine, vocabulary, decoding, std::move(options))) {
  state_->route();
}
Server::~Server() = default;

int Server::bind() {
  const ServerOptions& o = state_->options;
  int port = o.port;
  if (port == 0) {
    port = state_->http.bind_to_any_port(o.host);
  } else if (!state_->http.bind_to_port(o.host, port)) {
    port = -1;
  }
  if (port < 0) {
    throw Error(
        fmt::format("cannot listen at {}:{}; is the port taken? (--host, --port)", o.host, o.port));
  }
  return port;
}

void Server::run() { state_->http.listen_after_bind(); }

void Server::stop() {
  state_->stopping = true;
  state_->http.stop();
}

}  // namespace firp
