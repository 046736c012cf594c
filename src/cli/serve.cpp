#include <fmt/format.h>

#include <chrono>
#include <climits>
#include <memory>
#include <optional>
#include <stop_token>
#include <thread>

#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/verbs.h"
#include "model/error.h"
#include "serve/server.h"

namespace firp {
namespace {

struct ServeFlags {
  DecodeFlags decode;
  ServerOptions server;
  std::optional<int> tokens;
};

int run_serve(const ServeFlags& flags) {
  constexpr int kMostSlots = 64;
  if (flags.server.port < 0 || flags.server.port > 65535) throw Error("--port must be 0 to 65535");
  require_at_least(flags.server.slots, 1, "--parallel");
  if (flags.server.slots > kMostSlots) {
    throw Error(fmt::format("--parallel must be at most {}", kMostSlots));
  }
  require_at_least(flags.tokens.value_or(1), 1, "-n");
  Decoder decoder(flags.decode, std::span(&flags.decode.tree, 1));
  ServerOptions options = flags.server;
  options.max_tokens = flags.tokens.value_or(INT_MAX);
  if (options.model_name.empty()) options.model_name = flags.decode.model.stem().string();

  catch_interrupts();
  Server server(decoder.engine, decoder.vocabulary, decoder.options, options);
  const int port = server.bind();
  fmt::print(stderr, "firp: {} at http://{}:{} (for programs /v1); Ctrl-C ends it\n",
             options.model_name, options.host, port);
  const std::jthread watch([&server](const std::stop_token& ended) {
    while (!ended.stop_requested()) {
      if (interrupted) return server.stop();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  });
  server.run();
  return interrupted ? 0 : 1;
}

}  // namespace

Verb add_serve(CLI::App& program) {
  CLI::App* app =
      program.add_subcommand("serve", "Answer requests over HTTP, as OpenAI's API does");
  const auto flags = std::make_shared<ServeFlags>();
  app->footer(R"(
Endpoints: POST /v1/chat/completions, POST /v1/completions, GET /v1/models, GET /health; at / there is
a page to chat with the model. Several requests are answered at once, pass by pass in turn. What a
request does not say (temperature, top_k, ...) is as the flags have it, but for the seed: without one
of its own a request has another one each time. Drafts never change the text: with temperature 0, or
with a seed, a request has the same answer every time, whatever else is being answered.

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
  app->add_option("--parallel", server.slots,
                  "(-np) Requests that are answered at once; others wait")
      ->capture_default_str();
  app->add_option("-a,--alias", server.model_name, "The model's name in replies");
  app->add_option("--api-key", server.api_key, "Requests must bring it (Authorization: Bearer KEY)")
      ->envname("FIRP_API_KEY");
  app->add_option("-n,--predict,--n-predict", flags->tokens,
                  "Tokens of an answer at most (default: until the context is full)");
  flags->decode.add_decoding_to(*app);
  flags->decode.add_engine_to(*app);
  flags->decode.add_draft_to(*app);
  return {app, [flags] { return run_serve(*flags); }};
}

}  // namespace firp
