#include "serve/server.h"

#include <fmt/format.h>
#include <llama.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
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
#include "serve/growing_answers.h"
#include "serve/http_server.h"
#include "serve/llama_completion.h"
#include "serve/messages.h"
#include "serve/metrics.h"
#include "serve/page.h"
#include "serve/prepare.h"
#include "serve/scheduler.h"

namespace firp {
namespace {

constexpr const char* kJson = "application/json; charset=utf-8";
/// Of all requests that are being read and understood. Small ones are let in all the same, so that
/// who sends large ones slowly keeps nobody out.
constexpr std::size_t kMostBodyBytesTogether = std::size_t{128} << 20;
constexpr std::size_t kSmallBodyBytes = std::size_t{256} << 10;

std::string new_id(Dialect dialect) {
  const char* const prefix = dialect == Dialect::kChat        ? "chatcmpl-"
                             : dialect == Dialect::kResponses ? "resp_"
                             : dialect == Dialect::kMessages  ? "msg_"
                                                              : "cmpl-";
  std::random_device random;
  return fmt::format("{}{:08x}{:08x}{:08x}", prefix, random(), random(), random());
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

/// In the form that clients of the path expect.
void reply(httplib::Response& response, const std::string& path, const RequestError& error) {
  if (error.kind.status == kBusy.status) response.set_header("Retry-After", "1");
  reply(response, path.starts_with("/v1/messages") ? messages_error(error) : error_reply(error),
        error.kind.status);
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

/// Events of a stream (https://html.spec.whatwg.org/multipage/server-sent-events.html).
bool send(httplib::DataSink& sink, const std::string& bytes) {
  return sink.write(bytes.data(), bytes.size());
}
bool send(httplib::DataSink& sink, const Events& events) {
  std::string bytes;
  for (const Event& each : events) {
    if (!each.name.empty()) bytes += fmt::format("event: {}\n", each.name);
    bytes += fmt::format("data: {}\n\n", to_bytes(each.data));
  }
  return bytes.empty() || send(sink, bytes);
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

/// A request for text, from its body to its reply.
struct Exchange {
  Exchange(PreparedRequest p, ReplyHead head, std::shared_ptr<LoggedRequest> l)
      : prepared(std::move(p)),
        writer(make_reply_writer(prepared.request, std::move(head), prepared.prompts)),
        answers(prepared.generations.size(), prepared.reader),
        logged(std::move(l)) {
    logged->usages.resize(prepared.generations.size());
  }

  PreparedRequest prepared;
  const std::unique_ptr<ReplyWriter> writer;
  GrowingAnswers answers;
  const std::shared_ptr<LoggedRequest> logged;
};

LoggedRequest logged_request(const httplib::Request& request) {
  return {.method = request.method, .path = request.path, .client = request.remote_addr};
}

/// Where a response keeps what the log is to tell of its request.
constexpr const char* kLogged = "logged";
using SharedLogged = std::shared_ptr<LoggedRequest>;

SharedLogged logged_of(const httplib::Request& request, httplib::Response& response) {
  if (const SharedLogged* const there = response.user_data.get<SharedLogged>(kLogged)) {
    return *there;
  }
  const auto logged = std::make_shared<LoggedRequest>(logged_request(request));
  response.user_data.set(kLogged, logged);
  return logged;
}

}  // namespace

struct Server::State {
  State(BatchDecoder& b, const ChatTemplate& t, const DecodeOptions& d, ServerOptions o)
      : engine(b.engine()),
        vocabulary(t.vocabulary()),
        chat_template(t),
        options(std::move(o)),
        defaults{.sampling = d.sampling,
                 .seed = options.seed,
                 .max_tokens = options.max_tokens,
                 .vocabulary = vocabulary.size(),
                 .verbose = options.verbose,
                 .slots = options.parallel,
                 .thinks = options.thinks,
                 .reasoning = options.reasoning,
                 .template_variables = options.template_variables},
        rules{.api_keys = options.api_keys,
              .origins = options.allowed_origins,
              .hosts = options.allowed_hosts},
        scheduler(b, vocabulary, d, options.parallel, options.most_waiting) {}

  void route();
  /// Refuses who may not use the server, and what it does not have, before a body is read.
  void admit(const httplib::Request& request, httplib::Response& response) const;
  /// Made for the first request that needs them.
  const TokenTexts& texts() {
    std::call_once(texts_made, [this] { made_texts = token_texts(vocabulary); });
    return made_texts;
  }
  RequestError error_of(const std::exception_ptr& thrown) const;
  /// Whether the answer to the calling thread's request is to end. A RequestError where it has
  /// taken as long as it may.
  bool is_unwanted() const;
  /// Where standard error takes it: a log that nobody reads must not stop the server.
  void log(LoggedRequest& request, int status) const;
  int context() const { return engine.options().context; }

  // What is asked for.
  struct Route;
  static const Route kRoutes[];
  static const Route* route_of(const std::string& path);
  using Reader = httplib::ContentReader;
  void page(const httplib::Request&, httplib::Response& response, const Reader*);
  void page_style(const httplib::Request&, httplib::Response& response, const Reader*);
  void page_script(const httplib::Request&, httplib::Response& response, const Reader*);
  void health(const httplib::Request&, httplib::Response& response, const Reader*);
  void models(const httplib::Request&, httplib::Response& response, const Reader*);
  void props(const httplib::Request&, httplib::Response& response, const Reader*);
  void slots(const httplib::Request&, httplib::Response& response, const Reader*);
  void slot_action(const httplib::Request& request, httplib::Response& response,
                   const Reader* read);
  void metrics(const httplib::Request&, httplib::Response& response, const Reader*);
  void tokenize(const httplib::Request&, httplib::Response& response, const Reader* read);
  void detokenize(const httplib::Request&, httplib::Response& response, const Reader* read);
  void apply_template(const httplib::Request&, httplib::Response& response, const Reader* read);
  void not_done(const httplib::Request& request, httplib::Response&, const Reader*);
  template <Dialect dialect>
  void count_tokens(const httplib::Request&, httplib::Response& response, const Reader* read);
  template <EmbeddingsForm form>
  void embed(const httplib::Request& request, httplib::Response& response, const Reader* read);
  template <Dialect dialect>
  void complete(const httplib::Request& request, httplib::Response& response, const Reader* read);

  TextRequest read_request(Dialect dialect, const httplib::Request& request,
                           httplib::Response& response, const Reader& read);
  void answer(Exchange& exchange, const std::function<void(const Events&)>& send,
              const std::function<bool()>& is_unwanted);
  void stream(const std::shared_ptr<Exchange>& exchange, const httplib::Request& request,
              httplib::Response& response);

  Engine& engine;
  const Vocabulary& vocabulary;
  const ChatTemplate& chat_template;
  const ServerOptions options;
  const RequestDefaults defaults;
  AccessRules rules;  ///< complete once the port is open
  Scheduler scheduler;
  const std::int64_t start_seconds = now_seconds();
  std::atomic<bool> stopping = false;
  std::atomic<std::size_t> body_bytes = 0;
  mutable std::mutex log_mutex;
  std::once_flag texts_made;
  TokenTexts made_texts;
  HttpServer http;
};

struct Server::State::Route {
  const char* path;
  const char* method;
  void (State::*answer)(const httplib::Request&, httplib::Response&, const Reader*);
  bool is_open = false;  ///< asks for no key: the page asks for it itself
};

/// OpenAI's and Anthropic's clients put /v1 in front; llama.cpp's know both forms.
const Server::State::Route Server::State::kRoutes[] = {
    {"/", "GET", &State::page, true},
    {"/page.css", "GET", &State::page_style, true},
    {"/page.js", "GET", &State::page_script, true},
    {"/health", "GET", &State::health, true},
    {"/v1/health", "GET", &State::health, true},
    {"/models", "GET", &State::models},
    {"/v1/models", "GET", &State::models},
    {"/props", "GET", &State::props},
    {"/slots", "GET", &State::slots},
    {"/slots/:slot", "POST", &State::slot_action},
    {"/metrics", "GET", &State::metrics},
    {"/tokenize", "POST", &State::tokenize},
    {"/detokenize", "POST", &State::detokenize},
    {"/apply-template", "POST", &State::apply_template},
    {"/completion", "POST", &State::complete<Dialect::kLlama>},
    {"/completions", "POST", &State::complete<Dialect::kLlama>},
    {"/infill", "POST", &State::complete<Dialect::kInfill>},
    {"/v1/completions", "POST", &State::complete<Dialect::kText>},
    {"/chat/completions", "POST", &State::complete<Dialect::kChat>},
    {"/v1/chat/completions", "POST", &State::complete<Dialect::kChat>},
    {"/chat/completions/input_tokens", "POST", &State::count_tokens<Dialect::kChat>},
    {"/v1/chat/completions/input_tokens", "POST", &State::count_tokens<Dialect::kChat>},
    {"/responses", "POST", &State::complete<Dialect::kResponses>},
    {"/v1/responses", "POST", &State::complete<Dialect::kResponses>},
    {"/v1/responses/input_tokens", "POST", &State::count_tokens<Dialect::kResponses>},
    {"/v1/messages", "POST", &State::complete<Dialect::kMessages>},
    {"/v1/messages/count_tokens", "POST", &State::count_tokens<Dialect::kMessages>},
    {"/v1/embeddings", "POST", &State::embed<EmbeddingsForm::kOpenAi>},
    {"/embeddings", "POST", &State::embed<EmbeddingsForm::kLlama>},
    {"/embedding", "POST", &State::embed<EmbeddingsForm::kLlama>},
    {"/v1/rerank", "POST", &State::not_done},
    {"/rerank", "POST", &State::not_done},
    {"/v1/reranking", "POST", &State::not_done},
    {"/reranking", "POST", &State::not_done},
    {"/lora-adapters", "GET", &State::not_done},
    {"/v1/audio/transcriptions", "POST", &State::not_done},
};

const Server::State::Route* Server::State::route_of(const std::string& path) {
  const std::string pattern = path.starts_with("/slots/") ? "/slots/:slot" : path;
  const Route* const route = std::ranges::find(kRoutes, pattern, &Route::path);
  return route == std::end(kRoutes) ? nullptr : route;
}

void Server::State::log(LoggedRequest& request, int status) const {
  using Seconds = std::chrono::duration<double>;
  if (options.log == LogFormat::kNone) return;
  request.status = status;
  request.seconds = Seconds(std::chrono::steady_clock::now() - HttpServer::request_began()).count();
  const Seconds now = std::chrono::system_clock::now().time_since_epoch();
  std::string line =
      options.log == LogFormat::kJson ? json_line(request, now.count()) : text_line(request);
  if (line.empty()) return;
  line += '\n';
  const std::lock_guard lock(log_mutex);  // between the look and the write
  pollfd out = {.fd = STDERR_FILENO, .events = POLLOUT, .revents = 0};
  if (poll(&out, 1, 0) != 1 || (out.revents & POLLOUT) == 0) return;
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, line.data(), line.size());
}

bool Server::State::is_unwanted() const {
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

void Server::State::admit(const httplib::Request& request, httplib::Response& response) const {
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
    } else {
      return;  // an answer without that header is a refusal to a browser that asks beforehand
    }
  }
  if (request.method == "OPTIONS") {
    response.set_header("Allow", "GET, HEAD, POST, OPTIONS");
    response.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
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
  const Route* const route = route_of(request.path);
  if (route == nullptr) {
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
  if (!route->is_open && !key_is_right(rules, request.get_header_value("Authorization"),
                                       request.get_header_value("X-API-Key"))) {
    throw RequestError(kInvalidKey, "the API key is missing or wrong (Authorization: Bearer KEY)");
  }
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

void Server::State::page(const httplib::Request&, httplib::Response& response, const Reader*) {
  if (!options.has_page) throw RequestError(kNotFound, "this server has no page (--ui)");
  response.set_header("Content-Security-Policy", kPageRules);
  reply_page(response, kPage, "text/html; charset=utf-8");
}

void Server::State::page_style(const httplib::Request&, httplib::Response& response,
                               const Reader*) {
  reply_page(response, kPageStyle, "text/css; charset=utf-8");
}

void Server::State::page_script(const httplib::Request&, httplib::Response& response,
                                const Reader*) {
  reply_page(response, kPageScript, "text/javascript; charset=utf-8");
}

void Server::State::health(const httplib::Request&, httplib::Response& response, const Reader*) {
  reply(response, {{"status", "ok"}});
}

void Server::State::models(const httplib::Request&, httplib::Response& response, const Reader*) {
  const Json model = {{"id", options.model_name},
                      {"object", "model"},
                      {"created", start_seconds},
                      {"owned_by", "firp"},
                      {"meta",
                       {{"vocab_type", 2},
                        {"n_vocab", vocabulary.size()},
                        {"n_ctx", context()},
                        {"n_ctx_train", engine.config().trained_context},
                        {"n_embd", engine.config().hidden_size}}}};
  // llama.cpp adds Ollama's list, which some clients read.
  const Json other = {{"name", options.model_name},
                      {"model", options.model_name},
                      {"type", "model"},
                      {"capabilities", Json::array({"completion"})},
                      {"details", {{"format", "gguf"}}}};
  reply(response,
        {{"object", "list"}, {"data", Json::array({model})}, {"models", Json::array({other})}});
}

void Server::State::props(const httplib::Request&, httplib::Response& response, const Reader*) {
  Json settings = settings_member(defaults.sampling);
  settings["seed"] = defaults.seed.value_or(LLAMA_DEFAULT_SEED);  // llama.cpp's "any"
  settings["n_predict"] = defaults.max_tokens;
  settings["max_tokens"] = defaults.max_tokens;
  const llama_vocab* const v = llama_model_get_vocab(vocabulary.model());
  const auto piece = [&](Token token) {
    return token == kNoToken ? "" : vocabulary.piece(token, /*show_special=*/true);
  };
  reply(response, {{"default_generation_settings",
                    {{"id", 0},
                     {"n_ctx", context()},
                     {"is_processing", false},
                     {"speculative", true},
                     {"params", std::move(settings)}}},
                   {"total_slots", options.parallel},
                   {"model_alias", options.model_name},
                   {"model_path", options.model_path},
                   {"modalities", {{"vision", false}, {"audio", false}}},
                   {"endpoint_slots", options.tells_slots},
                   {"endpoint_props", false},
                   {"endpoint_metrics", options.tells_metrics},
                   {"chat_template", chat_template.source()},
                   {"chat_template_caps", chat_template.capabilities()},
                   {"bos_token", piece(llama_vocab_bos(v))},
                   {"eos_token", piece(llama_vocab_eos(v))},
                   {"build_info", "firp"},
                   {"is_sleeping", false}});
}

void Server::State::slots(const httplib::Request& request, httplib::Response& response,
                          const Reader*) {
  if (!options.tells_slots) {
    throw RequestError(kNotImplemented, "this server does not tell its slots (--slots)");
  }
  const Scheduler::Status status = scheduler.status();
  if (request.has_param("fail_on_no_slot") &&
      std::ranges::all_of(status.slots, &Scheduler::Slot::is_busy)) {
    throw RequestError(kBusy, "all slots are taken");
  }
  reply(response, slots_of(status, context()));
}

void Server::State::slot_action(const httplib::Request& request, httplib::Response& response,
                                const Reader* read) {
  if (options.slot_folder.empty()) {
    throw RequestError(kNotImplemented,
                       "this server keeps no slots on disk (firp serve --slot-save-path DIR)");
  }
  const BodyBytes body(body_bytes, request, response, *read);
  const std::string number = request.path.substr(std::string_view("/slots/").size());
  int slot = -1;
  const char* const last = number.data() + number.size();
  const auto [end, problem] = std::from_chars(number.data(), last, slot);
  if (problem != std::errc() || end != last || slot < 0 || slot >= options.parallel) {
    throw RequestError(kInvalidValue, fmt::format("there is no slot {}: they are 0 to {}",
                                                  one_line(number), options.parallel - 1));
  }
  const std::string action = request.get_param_value("action");
  const auto leaves = [this] { return is_unwanted(); };
  if (action == "erase") {
    const int erased = scheduler.erase(slot, leaves);
    return reply(response, {{"id_slot", slot}, {"n_erased", erased}});
  }
  if (action != "save" && action != "restore") {
    throw RequestError(kInvalidValue, "'action' is save, restore or erase", "action");
  }
  const bool saves = action == "save";
  const std::string name = parse_slot_file_request(body.text());
  const Scheduler::SlotFile file =
      saves ? scheduler.save(slot, options.slot_folder / name, leaves)
            : scheduler.restore(slot, options.slot_folder / name, leaves);
  reply(response, {{"id_slot", slot},
                   {"filename", name},
                   {saves ? "n_saved" : "n_restored", file.tokens},
                   {saves ? "n_written" : "n_read", file.bytes},
                   {"timings", {{saves ? "save_ms" : "restore_ms", file.seconds * 1000}}}});
}

void Server::State::metrics(const httplib::Request&, httplib::Response& response, const Reader*) {
  if (!options.tells_metrics) {
    throw RequestError(kNotImplemented, "this server does not tell its metrics (--metrics)");
  }
  response.set_header("Process-Start-Time-Unix", std::to_string(start_seconds));
  response.set_content(metrics_of(scheduler.status()), "text/plain; version=0.0.4");
}

void Server::State::tokenize(const httplib::Request& http_request, httplib::Response& response,
                             const Reader* read) {
  const BodyBytes body(body_bytes, http_request, response, *read);
  const TokenizeRequest request = parse_tokenize_request(body.text());
  PromptText text = {request.content};
  if (!request.parse_special) text.literal.push_back({0, request.content.size()});
  std::vector<Token> tokens;
  try {
    vocabulary.require_fits(request.content.size(), context());  // before it takes its time
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
  reply(response, {{"tokens", std::move(list)}});
}

void Server::State::detokenize(const httplib::Request& request, httplib::Response& response,
                               const Reader* read) {
  const BodyBytes body(body_bytes, request, response, *read);
  std::string text;
  for (const Token token : parse_detokenize_request(body.text(), vocabulary.size())) {
    text += vocabulary.piece(token, /*show_special=*/true);
  }
  reply(response, {{"content", text}});
}

void Server::State::apply_template(const httplib::Request& request, httplib::Response& response,
                                   const Reader* read) {
  const TextRequest chat = read_request(Dialect::kChat, request, response, *read);
  reply(response, {{"prompt", written_chat(chat, chat_template).prompt.text}});
}

void Server::State::not_done(const httplib::Request& request, httplib::Response&, const Reader*) {
  throw RequestError(kNotImplemented, fmt::format("{} is not done by this server", request.path));
}

TextRequest Server::State::read_request(Dialect dialect, const httplib::Request& request,
                                        httplib::Response& response, const Reader& read) {
  const BodyBytes body(body_bytes, request, response, read);
  return parse_request(body.text(), dialect, defaults);
}

template <Dialect dialect>
void Server::State::count_tokens(const httplib::Request& http_request, httplib::Response& response,
                                 const Reader* read) {
  const TextRequest request = read_request(dialect, http_request, response, *read);
  const std::size_t tokens =
      vocabulary.tokenize(written_chat(request, chat_template).prompt, /*add_bos=*/true).size();
  Json counted = {{"input_tokens", tokens}};
  if (dialect != Dialect::kMessages) counted["object"] = "response.input_tokens";
  reply(response, counted);
}

template <EmbeddingsForm form>
void Server::State::embed(const httplib::Request& http_request, httplib::Response& response,
                          const Reader* read) {
  if (!options.embeddings) {
    throw RequestError(kNotImplemented,
                       "this server makes no embeddings; firp serve --embeddings does");
  }
  const Pooling pooling = options.embeddings->pooling;
  if (form == EmbeddingsForm::kOpenAi && pooling == Pooling::kNone) {
    throw RequestError(
        kInvalidValue,
        "with --pooling none each token has a vector, and OpenAI's form has room for "
        "one alone; ask /embeddings");
  }
  const int size = engine.config().hidden_size;
  const EmbeddingsRequest request = [&] {
    const BodyBytes body(body_bytes, http_request, response, *read);
    return parse_embeddings_request(body.text(), form, vocabulary.size(), size,
                                    options.embeddings->norm);
  }();
  std::vector<std::vector<Token>> texts = embedded_tokens(request, vocabulary, context(), pooling);
  const std::vector<Scheduler::Answer> answers =
      scheduler.embed(std::move(texts), pooling, [this] { return is_unwanted(); });
  LoggedRequest& logged = *logged_of(http_request, response);
  for (const Scheduler::Answer& each : answers) logged.usages.push_back(each.usage);
  reply(response, embeddings_reply(request, answers, size, options.model_name));
}

/// All events of the answers.
void Server::State::answer(Exchange& exchange, const std::function<void(const Events&)>& send,
                           const std::function<bool()>& is_unwanted) {
  ReplyWriter& writer = *exchange.writer;
  bool began = false;
  const auto begin = [&](const Usage& usage) {
    if (!std::exchange(began, true)) send(writer.begin(usage));
  };
  // Tokens of each prompt that its listener knows to be read. What was held is told first.
  std::vector<int> told(exchange.prepared.generations.size(), -1);
  const auto tell_reading = [&](int answer, const Usage& usage) {
    if (told[answer] < 0) {
      Usage held = usage;
      held.read_tokens = usage.cached_tokens;
      held.stats = {};
      send(writer.progress(held));
    }
    if (usage.read_tokens > std::max(told[answer], usage.cached_tokens)) {
      send(writer.progress(usage));
    }
    told[answer] = usage.read_tokens;
  };
  const Listener listener = {
      .on_part =
          [&](int answer, const ReplyPart& part, const Usage& usage) {
            exchange.logged->usages[answer] = usage;
            begin(usage);
            send(writer.part(answer, part, exchange.answers.add(answer, part), usage));
          },
      .on_reading =
          [&](int answer, const Usage& usage) {
            exchange.logged->usages[answer] = usage;
            begin(usage);
            if (exchange.prepared.request.return_progress) tell_reading(answer, usage);
          },
      .is_unwanted = is_unwanted};
  const std::vector<Scheduler::Answer> ended =
      scheduler.complete(std::move(exchange.prepared.generations), listener);
  for (std::size_t i = 0; i < ended.size(); ++i) {
    const auto number = static_cast<int>(i);
    const ReplyDelta rest = exchange.answers.end(number, ended[i]);
    exchange.logged->usages[i] = ended[i].usage;
    if (exchange.logged->finish != FinishReason::kLength) {
      exchange.logged->finish = ended[i].finish;
    }
    send(writer.end(number, exchange.answers.answers()[i], rest));
  }
  send(writer.finish(exchange.answers.answers()));
}

void Server::State::stream(const std::shared_ptr<Exchange>& exchange,
                           const httplib::Request& request, httplib::Response& response) {
  exchange->logged->streams = true;
  const auto write = [this, exchange](httplib::DataSink& sink) {
    LoggedRequest& logged = *exchange->logged;
    bool listening = true;
    const auto send_events = [&](const Events& events) {
      listening = listening && send(sink, events);
    };
    try {
      answer(*exchange, send_events, [&] { return !listening || is_unwanted(); });
      log(logged, 200);
      if (listening && exchange->writer->says_done()) listening = send(sink, "data: [DONE]\n\n");
    } catch (...) {
      const RequestError error = error_of(std::current_exception());
      logged.client_left = HttpServer::client_has_left();
      logged.error = error.what();
      log(logged, 200);
      if (logged.client_left) return false;
      send_events(exchange->writer->error(error));
    }
    sink.done();
    return listening;
  };
  if (request.version == "HTTP/1.0") {  // which knows no chunks: the body ends as it closes
    HttpServer::close_after_answer();
    response.set_content_provider(
        "text/event-stream", [write](std::size_t, httplib::DataSink& sink) { return write(sink); });
  } else {
    response.set_chunked_content_provider(
        "text/event-stream", [write](std::size_t, httplib::DataSink& sink) { return write(sink); });
  }
}

template <Dialect dialect>
void Server::State::complete(const httplib::Request& http_request, httplib::Response& response,
                             const Reader* read) {
  TextRequest request = read_request(dialect, http_request, response, *read);
  DryOptions& dry = request.sampling.dry;
  if (dry.is_on() && !dry.texts) dry.texts = texts();
  PreparedRequest prepared = prepare(std::move(request), chat_template, context());
  const SharedLogged logged = logged_of(http_request, response);
  logged->id = new_id(dialect);
  const auto exchange = std::make_shared<Exchange>(
      std::move(prepared), ReplyHead{logged->id, now_seconds(), options.model_name}, logged);
  if (exchange->prepared.request.stream) {
    // While the status can still say so.
    scheduler.refuse_if_full(exchange->prepared.generations.size());
    return stream(exchange, http_request, response);
  }
  answer(
      *exchange, [](const Events&) {}, [this] { return is_unwanted(); });
  reply(response, exchange->writer->whole(
                      best_answers(exchange->answers.answers(), exchange->prepared.request)));
}

void Server::State::route() {
  http.set_logger([this](const httplib::Request& request, const httplib::Response& response) {
    const SharedLogged* const there = response.user_data.get<SharedLogged>(kLogged);
    LoggedRequest plain = logged_request(request);
    LoggedRequest& logged = there == nullptr ? plain : **there;
    if (!logged.streams) log(logged, response.status);
  });
  for (const Route& route : kRoutes) {
    if (std::string_view(route.method) == "GET") {
      http.Get(route.path,
               [this, &route](const httplib::Request& request, httplib::Response& response) {
                 (this->*route.answer)(request, response, nullptr);
               });
    } else {
      http.Post(route.path, [this, &route](const httplib::Request& request,
                                           httplib::Response& response, const Reader& read) {
        (this->*route.answer)(request, response, &read);
      });
    }
  }
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

Server::Server(BatchDecoder& decoder, const ChatTemplate& chat_template,
               const DecodeOptions& decoding, ServerOptions options)
    : state_(std::make_unique<State>(decoder, chat_template, decoding, std::move(options))) {
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
  HttpServer& http = state_->http;
  if (o.ssl_key_file.empty() != o.ssl_cert_file.empty()) {
    throw Error("--ssl-key-file and --ssl-cert-file are needed together");
  }
  if (!o.ssl_key_file.empty()) http.use_tls(tls_context(o.ssl_key_file, o.ssl_cert_file));
  int port = o.port;
  if (o.listens_at_file()) {
    http.bind_to_file(o.host);
    port = 0;
  } else {
    std::string host = o.host;
    if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
    if (port == 0) {
      port = http.bind_to_any_port(host);
    } else if (!http.bind_to_port(host, port)) {
      port = -1;
    }
    if (port < 0) {
      throw Error(fmt::format("cannot listen at {}:{}: {}", url_host(o.host), o.port,
                              why_not(host, o.port)));
    }
  }
  state_->rules.on_loopback = http.listens_on_loopback();
  return port;
}

bool Server::is_open() const {
  return !state_->rules.on_loopback && state_->rules.api_keys.empty();
}

void Server::run() { state_->http.listen_after_bind(); }

void Server::stop() {
  state_->stopping = true;
  state_->http.stop_serving();
}

}  // namespace firp
