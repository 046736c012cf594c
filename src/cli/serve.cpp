#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "model/ggml_log.h"
#include "model/message.h"
#include "model/part_name.h"
#include "serve/access.h"
#include "serve/router.h"
#include "serve/server.h"
#include "serve/tls.h"

namespace firp {
namespace {

/// Flags that are the router's alone: the processes of its models have their own, or none.
constexpr std::string_view kRoutersFlags[] = {"model",
                                              "alias",
                                              "tags",
                                              "host",
                                              "port",
                                              "api-key",
                                              "api-key-file",
                                              "ssl-key-file",
                                              "ssl-cert-file",
                                              "cors-origins",
                                              "cors-methods",
                                              "cors-headers",
                                              "cors-credentials",
                                              "allowed-hosts",
                                              "models-dir",
                                              "models-max",
                                              "models-autoload",
                                              "models-preset"};

struct ServeFlags {
  DecodeFlags decode;
  RouterOptions router;
  ServerOptions server;
  std::vector<std::string> hosts;  ///< in place of the default one
  std::vector<std::string> api_keys;
  std::filesystem::path api_key_file;
  int tokens = -1;
  std::string reasoning = "auto";
  std::string reasoning_format = "auto";
  std::string template_variables;  ///< JSON
  bool context_is_whole = true;    ///< no slot has a part of its own
  int sleep_idle_seconds = -1;     ///< -1: never
  bool embeddings = false;
  std::string pooling;  ///< empty: the model's own
  std::optional<int> embd_normalize;
};

/// The keys of which requests must bring one; none: they need none.
std::vector<std::string> keys_of(const ServeFlags& flags) {
  std::vector<std::string> keys;
  const auto add = [&](std::vector<std::string> more) {
    keys.insert(keys.end(), std::make_move_iterator(more.begin()),
                std::make_move_iterator(more.end()));
  };
  for (const std::string& each : flags.api_keys) add(api_keys_from(each, "--api-key"));
  if (!flags.api_key_file.empty()) add(api_keys_in(flags.api_key_file));
  const char* const variable = std::getenv("FIRP_API_KEY");
  if (keys.empty() && variable != nullptr) add(api_keys_from(variable, "FIRP_API_KEY"));
  return keys;
}

std::string url_of(const ServerOptions& options, int port) {
  if (options.listens_at_file()) return "unix://" + options.host;
  return fmt::format("{}://{}:{}", options.ssl_key_file.empty() ? "http" : "https",
                     url_host(options.host), port);
}

std::map<std::string, Json> template_variables_of(const std::string& text) {
  if (text.empty()) return {};
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    throw Error("--chat-template-kwargs must be a JSON object: '{\"enable_thinking\": false}'");
  }
  std::map<std::string, Json> variables;
  for (const auto& [name, value] : json.items()) variables[name] = value;
  return variables;
}

/// What Google's Vertex AI tells a container in its environment: where it asks, and at which port.
void follow_vertex(ServerOptions& options) {
  const auto variable = [](const char* name) -> std::string {
    const char* const value = std::getenv(name);
    return value == nullptr ? "" : value;
  };
  if (variable("AIP_MODE") != "PREDICTION") return;
  const auto route = [&](const char* name) {
    const std::string path = variable(name);
    return path.empty() || path.starts_with('/') ? path : "/" + path;
  };
  VertexRoutes routes = {.health = route("AIP_HEALTH_ROUTE")};
  if (const std::string path = route("AIP_PREDICT_ROUTE"); !path.empty()) routes.predict = path;
  options.vertex = routes;
  const std::string port = variable("AIP_HTTP_PORT");
  if (port.empty()) return;
  const auto [end, problem] = std::from_chars(port.data(), port.data() + port.size(), options.port);
  if (problem != std::errc() || end != port.data() + port.size()) {
    throw Error(fmt::format("AIP_HTTP_PORT must be a port, not '{}'", one_line(port)));
  }
}

std::optional<EmbeddingOptions> embeddings_of(const ServeFlags& flags, const GgufFile& file) {
  if (!flags.embeddings) return std::nullopt;
  EmbeddingOptions options;
  options.pooling = flags.pooling.empty() ? pooling_of(file) : pooling_of_name(flags.pooling);
  options.norm = flags.embd_normalize.value_or(options.pooling == Pooling::kNone ? -1 : 2);
  return options;
}

/// The flags of a router that its models' processes get, too, as they were given.
void add_shared_flags(const CLI::App& app, std::vector<std::string>& arguments) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() == 0 || option->get_lnames().empty()) continue;
    const std::string& name = option->get_lnames().front();
    if (std::ranges::count(kRoutersFlags, name) != 0) continue;
    for (const std::string& value : option->results()) {
      arguments.push_back(fmt::format("--{}={}", name, value));
    }
  }
  for (const CLI::App* group : app.get_subcommands(nullptr)) add_shared_flags(*group, arguments);
}

/// Ends the server when a signal asks for it, and the program a second later, whatever still runs.
template <typename AnyServer>
void watch_for_signals(AnyServer& server, const std::stop_token& ended) {
  constexpr auto kGlance = std::chrono::milliseconds(20);
  constexpr auto kGrace = std::chrono::milliseconds(800);
  while (!interrupted) {
    if (ended.stop_requested()) return;
    std::this_thread::sleep_for(kGlance);
  }
  server.stop();
  const auto deadline = std::chrono::steady_clock::now() + kGrace;
  while (!ended.stop_requested()) {
    if (std::chrono::steady_clock::now() > deadline) std::_Exit(0);
    std::this_thread::sleep_for(kGlance);
  }
}

/// Answers requests until a signal comes; the exit status.
template <typename AnyServer>
int serve(AnyServer& server, const ServerOptions& options, const std::string& what) {
  const int port = server.bind();
  if (options.port == 0 && !options.listens_at_file()) {
    fmt::print("{}\n", port);
    flush_output();
  }
  std::string urls = url_of(options, port);
  for (const std::string& host : options.more_hosts) {
    ServerOptions other = options;
    other.host = host;
    urls += ", " + url_of(other, port);
  }
  say("firp: {} at {} (for programs /v1); Ctrl-C ends it\n", what, urls);
  if (server.is_open()) {
    say("firp: whoever reaches this address can use the model; --api-key KEY asks for a "
        "key\n");
  }
  const std::jthread watch(
      [&server](const std::stop_token& ended) { watch_for_signals(server, ended); });
  server.run();
  return interrupted ? 0 : 1;
}

int run_serve(const ServeFlags& flags, const CLI::App& app) {
  constexpr int kMostParallel = 64;
  ServerOptions options = flags.server;
  if (std::ranges::count(flags.hosts, "") > 0) throw Error("--host has an empty address");
  if (!flags.hosts.empty()) {
    options.host = flags.hosts.front();
    options.more_hosts.assign(flags.hosts.begin() + 1, flags.hosts.end());
  }
  const auto is_file = [](const std::string& host) { return host.ends_with(".sock"); };
  if (flags.hosts.size() > 1 && std::ranges::any_of(flags.hosts, is_file)) {
    throw Error("--host: a Unix socket stands alone, without other addresses");
  }
  follow_vertex(options);
  options.api_keys = keys_of(flags);
  std::ranges::transform(options.allowed_origins, options.allowed_origins.begin(), origin_from);
  std::ranges::transform(options.allowed_hosts, options.allowed_hosts.begin(), host_from);
  if (options.port < 0 || options.port > 65535) throw Error("--port must be 0 to 65535");
  require_at_least(options.parallel, 1, "--parallel");
  if (options.parallel > kMostParallel) {
    throw Error(fmt::format("--parallel must be at most {}", kMostParallel));
  }
  if (flags.sleep_idle_seconds == 0) {
    throw Error("--sleep-idle-seconds must be at least 1, or -1: never");
  }
  if (flags.sleep_idle_seconds > 0) options.idle_seconds = flags.sleep_idle_seconds;
  // Which says what is wrong with them before a model is loaded.
  if (!options.ssl_key_file.empty()) tls_context(options.ssl_key_file, options.ssl_cert_file);
  const int most = most_tokens(flags.tokens);
  std::error_code problem;
  if (!options.slot_folder.empty() &&
      !std::filesystem::is_directory(options.slot_folder, problem)) {
    throw Error(fmt::format("--slot-save-path: {} is no folder; make it first",
                            options.slot_folder.string()));
  }
  options.max_tokens = most;
  options.thinks = flags.reasoning != "off";
  options.reasoning =
      flags.reasoning_format == "none" ? ReasoningFormat::kNone : ReasoningFormat::kApart;
  options.template_variables = template_variables_of(flags.template_variables);
  if (!flags.router.models_dir.empty() || !flags.router.presets.empty()) {
    RouterOptions router = flags.router;
    require_at_least(router.models_max, 0, "--models-max");
    add_shared_flags(app, router.arguments);
    catch_interrupts();
    Router server(options, router);
    const auto& from = router.models_dir.empty() ? router.presets : router.models_dir;
    return serve(server, options, fmt::format("the models of {}", from.string()));
  }
  if (flags.decode.model.empty()) {
    throw Error("which model? firp serve model.gguf, or --models-dir DIR for all of a folder");
  }
  DecodeFlags decode = flags.decode;
  if (!flags.context_is_whole) decode.context_parts = options.parallel;
  const auto load = [&decode] {
    return std::make_shared<Decoder>(decode, std::span(&decode.tree, 1));
  };
  const auto served = [](const std::shared_ptr<Decoder>& decoder) {
    return ServedModel{decoder->batch, decoder->chat_template, decoder->options, decoder};
  };
  std::shared_ptr<Decoder> decoder = load();
  if (!is_random(decode.seed.value_or(kRandomSeed))) {
    options.seed = decoder->options.sampling.seed;
  }
  if (options.aliases.empty()) options.aliases = {model_name(decode.model)};
  options.model_name = options.aliases.front();
  options.model_path = decode.model.string();
  options.embeddings = embeddings_of(flags, *decoder->file);

  catch_interrupts();
  Server server(served(std::exchange(decoder, nullptr)), options, [&] { return served(load()); });
  return serve(server, options, options.model_name);
}

}  // namespace

Verb add_serve(CLI::App& program) {
  CLI::App* app =
      program.add_subcommand("serve", "Answer requests over HTTP, as OpenAI's API does");
  const auto flags = std::make_shared<ServeFlags>();
  flags->decode.context_is_shared = true;
  app->footer(R"(
Endpoints: POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /completion, /infill,
/tokenize, /slots/N?action=save, and with --embeddings /v1/embeddings, /embeddings; GET /v1/models, /props,
/slots, /metrics, /health (docs/serve.md); at / there is a page to chat with the model. Tools, JSON schemas and grammars
are followed, with drafts. Several requests are answered at once and share their passes. What a
request does not say (temperature, top_k, ...) is as the flags have it. Without a seed of its own, or of
--seed, a request has another one each time.

With the native engine (--engine) drafts never change the text: with temperature 0, or with a seed, a
request has the same answer every time, whatever else is being answered. With --engine llama the
rounding depends on what else is in a pass: a text can differ from the one that the request has alone,
and with several requests at once --exact does not prevent that.

Examples:
  firp serve model.gguf
  firp serve --models-dir models/ --models-max 2
  firp serve -m model.gguf --host 0.0.0.0 --port 8000 --api-key SECRET
  curl http://127.0.0.1:8080/v1/chat/completions \
    -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": true}')");
  flags->decode.add_model_to(*app);
  CLI::Option* const model = app->get_option("--model")->required(false);
  RouterOptions& router = flags->router;
  CLI::Option* const models_dir =
      app->add_option("--models-dir", router.models_dir,
                      "Instead of one model all of a folder, each in a process of its own, for "
                      "requests that name them")
          ->excludes(model);
  app->add_option("--models-preset", router.presets,
                  "llama-server's INI file: [NAME] and flags of that model without dashes, also of "
                  "models elsewhere (model = PATH), [*] of all")
      ->excludes(model);
  app->add_option("--models-max", router.models_max,
                  "Models of --models-dir that run at once; the one that was not used for longest "
                  "makes room; 0: no bound")
      ->capture_default_str();
  app->add_flag("--models-autoload,!--no-models-autoload", router.autoload,
                "A request for a model of --models-dir that does not run starts it (default: on)");
  ServerOptions& server = flags->server;
  app->add_option("--host", flags->hosts,
                  "Address to listen at; 0.0.0.0: all of this machine's; several with commas; a "
                  "path that ends in .sock: a Unix socket, alone")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->default_str(server.host);
  app->add_option("--port", server.port, "Port; 0: any free one")->capture_default_str();
  app->add_option("--parallel", server.parallel,
                  "(-np) Requests that are answered at once, 64 at most; others wait; -1: as many "
                  "as by default")
      ->transform(CLI::Transformer({{"-1", std::to_string(server.parallel)}}).description(""))
      ->capture_default_str();
  // In llama.cpp's order.
  const auto names = [](std::vector<std::string>& list) {
    return [&list](const std::vector<std::string>& given) {
      std::set<std::string> sorted;
      for (const std::string& each : given) {
        const std::size_t begin = each.find_first_not_of(' ');
        if (begin == std::string::npos) continue;
        sorted.insert(each.substr(begin, each.find_last_not_of(' ') + 1 - begin));
      }
      list.assign(sorted.begin(), sorted.end());
    };
  };
  app->add_option_function<std::vector<std::string>>(
         "-a,--alias", names(server.aliases),
         "The model's name in replies; of several, with commas, the first in the alphabet, and "
         "/models tells all")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->excludes(models_dir);
  app->add_option_function<std::vector<std::string>>("--tags", names(server.tags),
                                                     "Words for /models to tell, with commas")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->excludes(models_dir);
  app->add_option("--api-key", flags->api_keys,
                  "Requests must bring it, or one of several, with commas (Authorization: Bearer "
                  "KEY); also as the environment's FIRP_API_KEY")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app->add_option("--api-key-file", flags->api_key_file,
                  "The same, from a file: one a line, less lines that begin with #");
  CLI::Option* const key =
      app->add_option("--ssl-key-file", server.ssl_key_file,
                      "Encrypt connections (TLS): the certificate's key, PEM without a password");
  CLI::Option* const certificate =
      app->add_option("--ssl-cert-file", server.ssl_cert_file,
                      "The certificate, PEM, with those that it was signed by");
  key->needs(certificate);
  certificate->needs(key);
  app->add_option("--cors-origins,--allow-origin", server.allowed_origins,
                  "Pages of these origins may use the server, besides those of this machine: "
                  "https://HOST, * for all, localhost for none besides (default: with a key all, "
                  "else localhost)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app->add_option("--cors-methods", server.cors_methods,
                  "What such pages are told that they may use: methods")
      ->capture_default_str();
  app->add_option("--cors-headers", server.cors_headers,
                  "And headers (default: those that they ask for)");
  app->add_flag("--cors-credentials,!--no-cors-credentials", server.cors_credentials,
                "And what the browser keeps of this server's, as cookies of a proxy before it "
                "(default: off)");
  app->add_option("--allowed-hosts,--allow-host", server.allowed_hosts,
                  "Without a key, and listening to this machine alone: further names that requests "
                  "may call it by (behind a proxy)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app->add_option("--sleep-idle-seconds", flags->sleep_idle_seconds,
                  "Let go of the model, and its memory, when nobody has asked for it for so long; "
                  "the next request loads it again; -1: never")
      ->check(CLI::Range(-1, 1000000000))
      ->capture_default_str();
  app->add_flag("--kv-unified,!--no-kv-unified", flags->context_is_whole,
                "(-kvu, -no-kvu) Answers share the context, each as much as is free (default: on); "
                "off: each of -np has its part of -c, and no more");
  app->add_option("--request-timeout", server.request_seconds,
                  "Seconds that a request for text may take in all, waiting included; 0: no limit")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  app->add_option("--log-format", server.log,
                  "text: a line of each request for text, and of errors; json: an object of each "
                  "request")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, LogFormat>{{"text", LogFormat::kText},
                                                                   {"json", LogFormat::kJson}})
              .description("text|json"))
      ->default_str("text");
  app->add_option("--queue", server.most_waiting,
                  "Answers that wait to begin at most; more are refused (503)")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  CLI::Option* const embeddings =
      app->add_flag("--embedding,--embeddings,--rerank,--reranking", flags->embeddings,
                    "Make embeddings, too: /v1/embeddings, /embeddings (llama-server: them alone), "
                    "and rank documents by them: /rerank");
  app->add_option(
         "--pooling", flags->pooling,
         "What of the tokens' final states an embedding is: mean, last, cls (the first) or "
         "none (each by itself); default: what the model was made for, else mean")
      ->needs(embeddings);
  app->add_option("--embd-normalize", flags->embd_normalize,
                  "What embeddings are divided by: -1 nothing, 0 the greatest absolute value, to "
                  "32760; else their p-norm (default: 2; with --pooling none: -1)")
      ->check(CLI::Range(-1, 1000))
      ->needs(embeddings);
  app->add_flag("--slots,!--no-slots", server.tells_slots,
                "Tell at /slots what is being written (default: on)");
  app->add_flag("--ui,--webui,!--no-ui,!--no-webui", server.has_page,
                "The page to chat with the model (default: on)");
  app->add_flag("-v,--verbose", server.verbose,
                "Replies to chats tell what the model read (__verbose), as a request's \"verbose\" "
                "asks for");
  app->add_option(
      "--slot-save-path", server.slot_folder,
      "A folder in which POST /slots/N?action=save keeps what a slot has read, and from "
      "which action=restore takes it (native engine)");
  app->add_flag("--metrics", server.tells_metrics, "Tell numbers for Prometheus at /metrics");
  app->add_option("--reasoning", flags->reasoning,
                  "(-rea) Whether templates that know of thinking open it: on, off, auto")
      ->check(CLI::IsMember({"on", "off", "auto"}))
      ->capture_default_str();
  app->add_option(
         "--reasoning-format", flags->reasoning_format,
         "Where thoughts go: none leaves them in the text; auto and deepseek put them into "
         "reasoning_content")
      ->check(CLI::IsMember({"none", "auto", "deepseek", "deepseek-legacy"}))
      ->capture_default_str();
  app->add_option("--chat-template-kwargs", flags->template_variables,
                  "Further variables of the chat template, a JSON object");
  app->add_option("-n,--predict,--n-predict", flags->tokens, kPredictHelp)->capture_default_str();
  flags->decode.add_decoding_to(*app,
                                "Tokens that all requests under way have together, prompts and "
                                "answers, each as much as is free; 0: the model's own limit "
                                "(default)");
  flags->decode.add_template_to(*app);
  flags->decode.add_engine_to(*app);
  flags->decode.add_draft_to(*app);
  return {app, [flags, app] { return run_serve(*flags, *app); }};
}

}  // namespace firp
