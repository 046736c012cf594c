#include "serve/server.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <charconv>
#include <exception>
#include <functional>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

#include "base/error.h"
#include "model/ggml_log.h"
#include "serve/body.h"
#include "serve/front.h"
#include "serve/growing_answers.h"
#include "serve/llama_completion.h"
#include "serve/messages.h"
#include "serve/metrics.h"
#include "serve/prepare.h"
#include "serve/scheduler.h"

namespace firp {
namespace {

std::string new_id(Dialect dialect) {
  const char* const prefix = dialect == Dialect::kChat        ? "chatcmpl-"
                             : dialect == Dialect::kResponses ? "resp_"
                             : dialect == Dialect::kMessages  ? "msg_"
                                                              : "cmpl-";
  std::random_device random;
  return fmt::format("{}{:08x}{:08x}{:08x}", prefix, random(), random(), random());
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

}  // namespace

struct Server::State : Front {
  State(BatchDecoder& b, const ChatTemplate& t, const DecodeOptions& d, ServerOptions o);

  /// Made for the first request that needs them.
  const TokenTexts& texts() {
    std::call_once(texts_made, [this] { made_texts = token_texts(vocabulary); });
    return made_texts;
  }
  int context() const { return engine.options().context; }

  // What is asked for.
  struct Endpoint;
  static const Endpoint kEndpoints[];
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
  void rerank(const httplib::Request& request, httplib::Response& response, const Reader* read);
  template <Dialect dialect>
  void complete(const httplib::Request& request, httplib::Response& response, const Reader* read);

  void require_embeddings(bool one_each) const;
  std::vector<Scheduler::Answer> states_of(const EmbeddingsRequest& request,
                                           const httplib::Request& http_request,
                                           httplib::Response& response);
  TextRequest read_request(Dialect dialect, const httplib::Request& request,
                           httplib::Response& response, const Reader& read);
  void answer(Exchange& exchange, const std::function<void(const Events&)>& send,
              const std::function<bool()>& is_unwanted);
  void stream(const std::shared_ptr<Exchange>& exchange, const httplib::Request& request,
              httplib::Response& response);

  Engine& engine;
  const Vocabulary& vocabulary;
  const ChatTemplate& chat_template;
  const RequestDefaults defaults;
  Scheduler scheduler;
  std::once_flag texts_made;
  TokenTexts made_texts;
};

struct Server::State::Endpoint {
  const char* path;
  const char* method;
  void (State::*answer)(const httplib::Request&, httplib::Response&, const Reader*);
};

/// OpenAI's and Anthropic's clients put /v1 in front; llama.cpp's know both forms.
const Server::State::Endpoint Server::State::kEndpoints[] = {
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
    {"/v1/rerank", "POST", &State::rerank},
    {"/rerank", "POST", &State::rerank},
    {"/v1/reranking", "POST", &State::rerank},
    {"/reranking", "POST", &State::rerank},
    {"/lora-adapters", "GET", &State::not_done},
    {"/v1/audio/transcriptions", "POST", &State::not_done},
};

Server::State::State(BatchDecoder& b, const ChatTemplate& t, const DecodeOptions& d,
                     ServerOptions o)
    : Front(std::move(o)),
      engine(b.engine()),
      vocabulary(t.vocabulary()),
      chat_template(t),
      defaults{.sampling = d.sampling,
               .seed = options.seed,
               .max_tokens = options.max_tokens,
               .vocabulary = vocabulary.size(),
               .verbose = options.verbose,
               .slots = options.parallel,
               .thinks = options.thinks,
               .reasoning = options.reasoning,
               .template_variables = options.template_variables},
      scheduler(b, vocabulary, d, options.parallel, options.most_waiting) {
  for (const Endpoint& endpoint : kEndpoints) {
    add({endpoint.path, endpoint.method, std::bind_front(endpoint.answer, this)});
  }
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
  Json settings = settings_member(defaults.sampling, defaults.max_tokens);
  settings["seed"] = defaults.seed.value_or(LLAMA_DEFAULT_SEED);  // llama.cpp's "any"
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
                   {"build_info", "b-firp"},
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

std::vector<Scheduler::Answer> Server::State::states_of(const EmbeddingsRequest& request,
                                                        const httplib::Request& http_request,
                                                        httplib::Response& response) {
  const Pooling pooling = options.embeddings->pooling;
  std::vector<std::vector<Token>> texts = embedded_tokens(request, vocabulary, context(), pooling);
  std::vector<Scheduler::Answer> answers =
      scheduler.embed(std::move(texts), pooling, [this] { return is_unwanted(); });
  LoggedRequest& logged = *logged_of(http_request, response);
  for (const Scheduler::Answer& each : answers) logged.usages.push_back(each.usage);
  return answers;
}

/// `one_each`: whether the reply has room for one vector of a text alone.
void Server::State::require_embeddings(bool one_each) const {
  if (!options.embeddings) {
    throw RequestError(kNotImplemented,
                       "this server makes no embeddings; firp serve --embeddings does");
  }
  if (one_each && options.embeddings->pooling == Pooling::kNone) {
    throw RequestError(kInvalidValue,
                       "with --pooling none each token has a vector, and this needs one of each "
                       "text; ask /embeddings");
  }
}

template <EmbeddingsForm form>
void Server::State::embed(const httplib::Request& http_request, httplib::Response& response,
                          const Reader* read) {
  require_embeddings(form == EmbeddingsForm::kOpenAi);
  const int size = engine.config().hidden_size;
  const EmbeddingsRequest request = [&] {
    const BodyBytes body(body_bytes, http_request, response, *read);
    return parse_embeddings_request(body.text(), form, vocabulary.size(), size,
                                    options.embeddings->norm);
  }();
  reply(response, embeddings_reply(request, states_of(request, http_request, response), size,
                                   options.model_name));
}

void Server::State::rerank(const httplib::Request& http_request, httplib::Response& response,
                           const Reader* read) {
  require_embeddings(/*one_each=*/true);
  const RerankRequest request = [&] {
    const BodyBytes body(body_bytes, http_request, response, *read);
    return parse_rerank_request(body.text(), engine.config().hidden_size);
  }();
  reply(response, rerank_reply(request, states_of(request.texts, http_request, response),
                               options.model_name));
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

Server::Server(BatchDecoder& decoder, const ChatTemplate& chat_template,
               const DecodeOptions& decoding, ServerOptions options)
    : state_(std::make_unique<State>(decoder, chat_template, decoding, std::move(options))) {}
Server::~Server() = default;

std::vector<EndpointName> Server::endpoints() {
  std::vector<EndpointName> names;
  for (const State::Endpoint& each : State::kEndpoints) names.push_back({each.path, each.method});
  return names;
}

int Server::bind() { return state_->bind(); }

bool Server::is_open() const { return state_->is_open(); }

void Server::run() { state_->run(); }

void Server::stop() { state_->stop(); }

}  // namespace firp
