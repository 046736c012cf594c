#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>

#include "base/error.h"
#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/verbs.h"
#include "model/ggml_log.h"
#include "model/message.h"
#include "serve/access.h"
#include "serve/server.h"

namespace firp {
namespace {

struct ServeFlags {
  DecodeFlags decode;
  ServerOptions server;
  std::optional<std::string> api_key;
  int tokens = -1;
  std::string reasoning = "auto";
  std::string reasoning_format = "auto";
  std::string template_variables;  ///< JSON
  bool embeddings = false;
  std::string pooling;  ///< empty: the model's own
  std::optional<int> embd_normalize;
};

/// The key that requests must bring; empty: none. One that was meant to be there, as an unset
/// variable of a script, must not open the server.
std::string key_of(const ServeFlags& flags) {
  const char* const variable = std::getenv("FIRP_API_KEY");
  if (!flags.api_key && variable == nullptr) return {};
  std::string key = flags.api_key ? *flags.api_key : variable;
  const char* const where = flags.api_key ? "--api-key" : "FIRP_API_KEY";
  if (key.empty()) {
    throw Error(
        fmt::format("{} is empty: give a key, or leave it out for a server without one", where));
  }
  constexpr std::size_t kLongest = 4096;  // a header holds twice as much
  const bool sendable = key.size() <= kLongest && key.front() != ' ' && key.back() != ' ' &&
                        std::ranges::none_of(key, [](unsigned char c) { return c < 0x20; });
  if (!sendable) {
    throw Error(
        fmt::format("{} begins or ends with a space, has a control character or more "
                    "than 4096 bytes: no client can send it",
                    where));
  }
  return key;
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

std::optional<EmbeddingOptions> embeddings_of(const ServeFlags& flags, const GgufFile& file) {
  if (!flags.embeddings) return std::nullopt;
  EmbeddingOptions options;
  options.pooling = flags.pooling.empty() ? pooling_of(file) : pooling_of_name(flags.pooling);
  options.norm = flags.embd_normalize.value_or(options.pooling == Pooling::kNone ? -1 : 2);
  return options;
}

/// Ends the server when a signal asks for it, and the program a second later, whatever still runs.
void watch_for_signals(Server& server, const std::stop_token& ended) {
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

int run_serve(const ServeFlags& flags) {
  constexpr int kMostParallel = 64;
  ServerOptions options = flags.server;
  options.api_key = key_of(flags);
  std::ranges::transform(options.allowed_origins, options.allowed_origins.begin(), origin_from);
  std::ranges::transform(options.allowed_hosts, options.allowed_hosts.begin(), host_from);
  if (options.port < 0 || options.port > 65535) throw Error("--port must be 0 to 65535");
  require_at_least(options.parallel, 1, "--parallel");
  if (options.parallel > kMostParallel) {
    throw Error(fmt::format("--parallel must be at most {}", kMostParallel));
  }
  const int most = most_tokens(flags.tokens);
  Decoder decoder(flags.decode, std::span(&flags.decode.tree, 1));
  options.max_tokens = most;
  if (!is_random(flags.decode.seed.value_or(kRandomSeed))) {
    options.seed = decoder.options.sampling.seed;
  }
  if (options.model_name.empty()) options.model_name = flags.decode.model.stem().string();
  options.model_path = flags.decode.model.string();
  options.thinks = flags.reasoning != "off";
  options.reasoning =
      flags.reasoning_format == "none" ? ReasoningFormat::kNone : ReasoningFormat::kApart;
  options.template_variables = template_variables_of(flags.template_variables);
  options.embeddings = embeddings_of(flags, *decoder.file);

  catch_interrupts();
  Server server(decoder.batch, decoder.chat_template, decoder.options, options);
  const int port = server.bind();
  say("firp: {} at http://{}:{} (for programs /v1); Ctrl-C ends it\n", options.model_name,
      url_host(options.host), port);
  if (server.is_open()) {
    say("firp: whoever reaches this address can use the model; --api-key KEY asks for a "
        "key\n");
  }
  const std::jthread watch(
      [&server](const std::stop_token& ended) { watch_for_signals(server, ended); });
  server.run();
  return interrupted ? 0 : 1;
}

}  // namespace

Verb add_serve(CLI::App& program) {
  CLI::App* app =
      program.add_subcommand("serve", "Answer requests over HTTP, as OpenAI's API does");
  const auto flags = std::make_shared<ServeFlags>();
  flags->decode.context_is_shared = true;
  app->footer(R"(
Endpoints: POST /v1/chat/completions, /v1/completions, /v1/responses, /v1/messages, /completion, /infill,
/tokenize, and with --embeddings /v1/embeddings, /embeddings; GET /v1/models, /props, /slots, /metrics,
/health (docs/serve.md); at / there is a page to chat with the model. Tools, JSON schemas and grammars
are followed, with drafts. Several requests are answered at once and share their passes. What a
request does not say (temperature, top_k, ...) is as the flags have it. Without a seed of its own, or of
--seed, a request has another one each time.

With the native engine (--engine) drafts never change the text: with temperature 0, or with a seed, a
request has the same answer every time, whatever else is being answered. With --engine llama the
rounding depends on what else is in a pass: a text can differ from the one that the request has alone,
and with several requests at once --exact does not prevent that.

Examples:
  firp serve model.gguf
  firp serve -m model.gguf --host 0.0.0.0 --port 8000 --api-key SECRET
  curl http://127.0.0.1:8080/v1/chat/completions \
    -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}], "stream": true}')");
  flags->decode.add_model_to(*app);
  ServerOptions& server = flags->server;
  app->add_option("--host", server.host, "Address to listen at; 0.0.0.0: all of this machine's")
      ->capture_default_str();
  app->add_option("--port", server.port, "Port; 0: any free one")->capture_default_str();
  app->add_option("--parallel", server.parallel,
                  "(-np) Requests that are answered at once, 64 at most; others wait; -1: as many "
                  "as by default")
      ->transform(CLI::Transformer({{"-1", std::to_string(server.parallel)}}).description(""))
      ->capture_default_str();
  app->add_option("-a,--alias", server.model_name, "The model's name in replies");
  app->add_option("--api-key", flags->api_key,
                  "Requests must bring it (Authorization: Bearer KEY); also as the environment's "
                  "FIRP_API_KEY");
  app->add_option("--allow-origin", server.allowed_origins,
                  "Without a key, pages of this origin may use the server, too (default: those of "
                  "this machine): https://HOST, or * for all")
      ->delimiter(',');
  app->add_option("--allow-host", server.allowed_hosts,
                  "Without a key, and listening to this machine alone: another name that requests "
                  "may call it by (behind a proxy)")
      ->delimiter(',');
  app->add_option("--queue", server.most_waiting,
                  "Answers that wait to begin at most; more are refused (503)")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  CLI::Option* const embeddings =
      app->add_flag("--embedding,--embeddings", flags->embeddings,
                    "Make embeddings, too: /v1/embeddings, /embeddings (llama-server: them alone)");
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
  return {app, [flags] { return run_serve(*flags); }};
}

}  // namespace firp
