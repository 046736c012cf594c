#include "serve/server.h"

#include <fmt/format.h>
#include <llama.h>
#include <malloc.h>

#include <algorithm>
#include <charconv>
#include <chrono>
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
#include "serve/on_demand.h"
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

/// The model while it is loaded, and what runs on it.
struct AwakeModel {
  AwakeModel(ServedModel model, const ServerOptions& options, Scheduler::Status before)
      : served(std::move(model)),
        scheduler(served.decoder, vocabulary, served.decoding, options.parallel,
                  options.most_waiting, std::move(before)) {}

  /// Made for the first request that needs them.
  const TokenTexts& texts() {
    std::call_once(texts_made, [this] { made_texts = token_texts(vocabulary); });
    return made_texts;
  }
  int context() const { return engine.options().context; }

  const ServedModel served;
  Engine& engine = served.decoder.engine();
  const ChatTemplate& chat_template = served.chat_template;
  const Vocabulary& vocabulary = chat_template.vocabulary();
  std::once_flag texts_made;
  TokenTexts made_texts;
  Scheduler scheduler;
};
using SharedModel = std::shared_ptr<AwakeModel>;

/// A request for text, from its body to its reply.
struct Exchange {
  Exchange(SharedModel m, PreparedRequest p, ReplyHead head, std::shared_ptr<LoggedRequest> l)
      : model(std::move(m)),
        prepared(std::move(p)),
        writer(make_reply_writer(prepared.request, std::move(head), prepared.prompts)),
        answers(prepared.generations.size(), prepared.reader),
        logged(std::move(l)) {
    logged->usages.resize(prepared.generations.size());
  }

  const SharedModel model;
  PreparedRequest prepared;
  const std::unique_ptr<ReplyWriter> writer;
  GrowingAnswers answers;
  const std::shared_ptr<LoggedRequest> logged;
};

}  // namespace

struct Server::State : Front {
  State(ServedModel first, ServerOptions o, std::function<ServedModel()> load);

  /// The model, loaded if need be. What is done with it keeps it from sleeping.
  SharedModel use();
  /// Puts it to sleep.
  void let_go(std::unique_ptr<AwakeModel> model);
  /// Of the model, or of it as it fell asleep.
  Scheduler::Status status();

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
  std::vector<Scheduler::Answer> states_of(AwakeModel& model, const EmbeddingsRequest& request,
                                           const httplib::Request& http_request,
                                           httplib::Response& response);
  TextRequest read_request(Dialect dialect, const httplib::Request& request,
                           httplib::Response& response, const Reader& read);
  void answer(Exchange& exchange, const std::function<void(const Events&)>& send,
              const std::function<bool()>& is_unwanted);
  void stream(const std::shared_ptr<Exchange>& exchange, const httplib::Request& request,
              httplib::Response& response);

  // What is told of the model while it sleeps, too.
  const RequestDefaults defaults;
  const int context, hidden_size;
  const Json told_models, told_props;
  std::mutex status_mutex;  ///< of the next two
  Scheduler::Status asleep_status;
  Usage told_usage;  ///< what /metrics told last
  OnDemand<AwakeModel> model;
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

namespace {

RequestDefaults defaults_of(const ServedModel& model, const ServerOptions& options) {
  return {.sampling = model.decoding.sampling,
          .seed = options.seed,
          .max_tokens = options.max_tokens,
          .vocabulary = model.chat_template.vocabulary().size(),
          .verbose = options.verbose,
          .slots = options.parallel,
          .thinks = options.thinks,
          .reasoning = options.reasoning,
          .template_variables = options.template_variables};
}

Json models_of(const ServedModel& model, const ServerOptions& options, std::int64_t start_seconds) {
  const Engine& engine = model.decoder.engine();
  const Json member = {{"id", options.model_name},
                       {"aliases", options.aliases},
                       {"tags", options.tags},
                       {"object", "model"},
                       {"created", start_seconds},
                       {"owned_by", "firp"},
                       {"meta",
                        {{"vocab_type", 2},
                         {"n_vocab", model.chat_template.vocabulary().size()},
                         {"n_ctx", engine.options().context},
                         {"n_ctx_train", engine.config().trained_context},
                         {"n_embd", engine.config().hidden_size}}}};
  // llama.cpp adds Ollama's list, which some clients read.
  const Json other = {{"name", options.model_name},
                      {"model", options.model_name},
                      {"type", "model"},
                      {"capabilities", Json::array({"completion"})},
                      {"details", {{"format", "gguf"}}}};
  return {{"object", "list"}, {"data", Json::array({member})}, {"models", Json::array({other})}};
}

Json props_of(const ServedModel& model, const ServerOptions& options) {
  Json settings = settings_member(model.decoding.sampling, options.max_tokens);
  settings["seed"] = options.seed.value_or(LLAMA_DEFAULT_SEED);  // llama.cpp's "any"
  const Vocabulary& vocabulary = model.chat_template.vocabulary();
  const llama_vocab* const v = llama_model_get_vocab(vocabulary.model());
  const auto piece = [&](Token token) {
    return token == kNoToken ? "" : vocabulary.piece(token, /*show_special=*/true);
  };
  return {{"default_generation_settings",
           {{"id", 0},
            {"n_ctx", model.decoder.engine().options().context},
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
          {"chat_template", model.chat_template.source()},
          {"chat_template_caps", model.chat_template.capabilities()},
          {"bos_token", piece(llama_vocab_bos(v))},
          {"eos_token", piece(llama_vocab_eos(v))},
          {"build_info", "b-firp"}};
}

}  // namespace

Server::State::State(ServedModel first, ServerOptions o, std::function<ServedModel()> load)
    : Front(std::move(o)),
      defaults(defaults_of(first, options)),
      context(first.decoder.engine().options().context),
      hidden_size(first.decoder.engine().config().hidden_size),
      told_models(models_of(first, options, start_seconds)),
      told_props(props_of(first, options)),
      model(
          std::make_unique<AwakeModel>(std::move(first), options, Scheduler::Status{}),
          options.idle_seconds ? std::optional(std::chrono::seconds(*options.idle_seconds))
                               : std::nullopt,
          [this, load = std::move(load)] {
            log_line(options.model_name, "is loaded again");
            return std::make_unique<AwakeModel>(load(), options, status());
          },
          [this](std::unique_ptr<AwakeModel> unused) { let_go(std::move(unused)); }) {
  for (const Endpoint& endpoint : kEndpoints) {
    add({endpoint.path, endpoint.method, std::bind_front(endpoint.answer, this)});
  }
}

SharedModel Server::State::use() {
  try {
    return model.use([this] { return is_unwanted(); });
  } catch (const RequestError&) {
    throw;
  } catch (const Cancelled&) {
    throw;
  } catch (const Error& error) {
    throw RequestError(
        kModelFailed, fmt::format("the model slept, and cannot be loaded again: {}", error.what()));
  }
}

void Server::State::let_go(std::unique_ptr<AwakeModel> unused) {
  {
    const std::lock_guard lock(status_mutex);
    asleep_status = unused->scheduler.status();
  }
  unused.reset();
  malloc_trim(0);  // what many small pieces were taken for, as the vocabulary's
  log_line(options.model_name, fmt::format("sleeps after {} idle seconds", *options.idle_seconds));
}

Scheduler::Status Server::State::status() {
  if (const SharedModel awake = model.look()) return awake->scheduler.status();
  const std::lock_guard lock(status_mutex);
  return asleep_status;
}

void Server::State::models(const httplib::Request&, httplib::Response& response, const Reader*) {
  reply(response, told_models);
}

void Server::State::props(const httplib::Request&, httplib::Response& response, const Reader*) {
  Json props = told_props;
  props["is_sleeping"] = model.look() == nullptr;
  reply(response, props);
}

void Server::State::slots(const httplib::Request& request, httplib::Response& response,
                          const Reader*) {
  if (!options.tells_slots) {
    throw RequestError(kNotImplemented, "this server does not tell its slots (--slots)");
  }
  const Scheduler::Status now = status();
  if (request.has_param("fail_on_no_slot") &&
      std::ranges::all_of(now.slots, &Scheduler::Slot::is_busy)) {
    throw RequestError(kBusy, "all slots are taken");
  }
  reply(response, slots_of(now, context));
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
    const int erased = use()->scheduler.erase(slot, leaves);
    return reply(response, {{"id_slot", slot}, {"n_erased", erased}});
  }
  if (action != "save" && action != "restore") {
    throw RequestError(kInvalidValue, "'action' is save, restore or erase", "action");
  }
  const bool saves = action == "save";
  const std::string name = parse_slot_file_request(body.text());
  const SharedModel used = use();
  const Scheduler::SlotFile file =
      saves ? used->scheduler.save(slot, options.slot_folder / name, leaves)
            : used->scheduler.restore(slot, options.slot_folder / name, leaves);
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
  const Scheduler::Status now = status();
  Usage before;
  {
    const std::lock_guard lock(status_mutex);
    before = std::exchange(told_usage, now.all);
  }
  response.set_content(metrics_of(now, before), "text/plain; version=0.0.4");
}

void Server::State::tokenize(const httplib::Request& http_request, httplib::Response& response,
                             const Reader* read) {
  const BodyBytes body(body_bytes, http_request, response, *read);
  const TokenizeRequest request = parse_tokenize_request(body.text());
  const SharedModel used = use();
  const Vocabulary& vocabulary = used->vocabulary;
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
  reply(response, {{"tokens", std::move(list)}});
}

void Server::State::detokenize(const httplib::Request& request, httplib::Response& response,
                               const Reader* read) {
  const BodyBytes body(body_bytes, request, response, *read);
  const std::vector<Token> tokens = parse_detokenize_request(body.text(), defaults.vocabulary);
  const SharedModel used = use();
  std::string text;
  for (const Token token : tokens) text += used->vocabulary.piece(token, /*show_special=*/true);
  reply(response, {{"content", text}});
}

void Server::State::apply_template(const httplib::Request& request, httplib::Response& response,
                                   const Reader* read) {
  const TextRequest chat = read_request(Dialect::kChat, request, response, *read);
  reply(response, {{"prompt", written_chat(chat, use()->chat_template).prompt.text}});
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
  const SharedModel used = use();
  const PromptText prompt = written_chat(request, used->chat_template).prompt;
  const std::size_t tokens = used->vocabulary.tokenize(prompt, /*add_bos=*/true).size();
  Json counted = {{"input_tokens", tokens}};
  if (dialect != Dialect::kMessages) counted["object"] = "response.input_tokens";
  reply(response, counted);
}

std::vector<Scheduler::Answer> Server::State::states_of(AwakeModel& used,
                                                        const EmbeddingsRequest& request,
                                                        const httplib::Request& http_request,
                                                        httplib::Response& response) {
  const Pooling pooling = options.embeddings->pooling;
  std::vector<std::vector<Token>> texts =
      embedded_tokens(request, used.vocabulary, context, pooling);
  std::vector<Scheduler::Answer> answers =
      used.scheduler.embed(std::move(texts), pooling, [this] { return is_unwanted(); });
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
  const EmbeddingsRequest request = [&] {
    const BodyBytes body(body_bytes, http_request, response, *read);
    return parse_embeddings_request(body.text(), form, defaults.vocabulary, hidden_size,
                                    options.embeddings->norm);
  }();
  reply(response, embeddings_reply(request, states_of(*use(), request, http_request, response),
                                   hidden_size, options.model_name));
}

void Server::State::rerank(const httplib::Request& http_request, httplib::Response& response,
                           const Reader* read) {
  require_embeddings(/*one_each=*/true);
  const RerankRequest request = [&] {
    const BodyBytes body(body_bytes, http_request, response, *read);
    return parse_rerank_request(body.text(), hidden_size);
  }();
  reply(response, rerank_reply(request, states_of(*use(), request.texts, http_request, response),
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
      exchange.model->scheduler.complete(std::move(exchange.prepared.generations), listener);
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
  const SharedModel used = use();
  DryOptions& dry = request.sampling.dry;
  if (dry.is_on() && !dry.texts) dry.texts = used->texts();
  PreparedRequest prepared = prepare(std::move(request), used->chat_template, context);
  const SharedLogged logged = logged_of(http_request, response);
  logged->id = new_id(dialect);
  const auto exchange = std::make_shared<Exchange>(
      used, std::move(prepared), ReplyHead{logged->id, now_seconds(), options.model_name}, logged);
  if (exchange->prepared.request.stream) {
    // While the status can still say so.
    used->scheduler.refuse_if_full(exchange->prepared.generations.size());
    return stream(exchange, http_request, response);
  }
  answer(
      *exchange, [](const Events&) {}, [this] { return is_unwanted(); });
  reply(response, exchange->writer->whole(
                      best_answers(exchange->answers.answers(), exchange->prepared.request)));
}

Server::Server(ServedModel model, ServerOptions options, std::function<ServedModel()> load)
    : state_(std::make_unique<State>(std::move(model), std::move(options), std::move(load))) {}
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
