#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>

#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "decode/conversation.h"
#include "model/error.h"

namespace firp {
namespace {

struct ChatFlags {
  DecodeFlags decode;
  std::string system_prompt;
  int tokens = 1024;
};

constexpr const char* kCommands =
    "/reset  start a new conversation\n"
    "/stats  what the last answer took\n"
    "/help   this list\n"
    "/exit   leave (so does the end of the input)\n";

/// A line of standard input; nullopt at its end, or after Ctrl-C.
std::optional<std::string> read_line() {
  char* line = nullptr;
  std::size_t capacity = 0;
  const ssize_t length = getline(&line, &capacity, stdin);
  const std::unique_ptr<char, decltype(&std::free)> owner(line, &std::free);
  if (length < 0) return std::nullopt;
  std::string text(line, static_cast<std::size_t>(length));
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  return text;
}

int run_chat(const ChatFlags& flags) {
  require_at_least(flags.tokens, 1, "-n");
  require_utf8(flags.system_prompt, "the system prompt");
  const auto check = [&](const Vocabulary& known, int context) {
    known.require_fits(flags.system_prompt.size(), context);
    if (known.knows_chat_template()) return;
    throw Error(fmt::format("{} has no chat template{}; use `firp generate --raw`",
                            flags.decode.model.string(),
                            known.has_chat_template() ? " that libllama knows" : ""));
  };
  Decoder decoder(flags.decode, std::span(&flags.decode.tree, 1), check);
  const Vocabulary& vocabulary = decoder.vocabulary;
  const bool interactive = isatty(STDIN_FILENO) != 0;
  if (interactive) {
    fmt::print(stderr, "{}; /help lists the commands, Ctrl-C stops an answer\n",
               flags.decode.model.stem().string());
  }

  Session session(decoder.engine, decoder.options);
  Conversation conversation(vocabulary, flags.system_prompt);
  DecodeStats all;
  std::size_t prompt_tokens = 0;
  std::string last = "no answer yet";
  TextPrinter printer(use_colour(flags.decode.colour));
  while (true) {
    if (interactive) fmt::print(stderr, "\n> ");
    catch_interrupts();
    const std::optional<std::string> line = read_line();
    if (!line || *line == "/exit") break;
    if (line->find_first_not_of(" \t") == std::string::npos) continue;
    if (*line == "/help") {
      fmt::print(stderr, "{}", kCommands);
    } else if (*line == "/stats") {
      fmt::print(stderr, "{}\n", last);
    } else if (*line == "/reset") {
      session.truncate(0);
      conversation = Conversation(vocabulary, flags.system_prompt);
    } else {
      try {
        vocabulary.require_fits(line->size(), session.context());
        Conversation next = conversation;
        const std::vector<Token> tokens = next.user_turn(*line);
        session.append(tokens);
        conversation = std::move(next);
        const DecodeStats stats = generate(
            session, flags.tokens,
            [&](Token token) { return vocabulary.is_end_of_generation(token); },
            [&](const DecodedToken& token) {
              printer.print(vocabulary.piece(token.token), token.drafted);
              return !interrupted;
            });
        printer.finish();
        all += stats;
        prompt_tokens += tokens.size();
        last = describe_run(stats, decoder.options, tokens.size());
        if (static_cast<int>(session.tokens().size()) >= session.context()) {
          throw Error(fmt::format("the context of {} tokens is full; /reset starts anew (-c)",
                                  session.context()));
        }
      } catch (const Error& error) {
        // A person can go on from here; a script cannot.
        if (!interactive) throw;
        fmt::print(stderr, "firp: {}\n", error.what());
      }
    }
  }
  if (interactive) fmt::print(stderr, "\n");
  if (all.tokens > 0) {
    fmt::print(stderr, "firp: {}\n", describe_run(all, decoder.options, prompt_tokens));
  }
  return 0;
}

}  // namespace

Verb add_chat(CLI::App& program) {
  CLI::App* app = program.add_subcommand("chat", "Talk with a model");
  const auto flags = std::make_shared<ChatFlags>();
  app->footer(R"(
A turn is a line; the conversation so far is kept. Commands: /reset /stats /help /exit. Ctrl-C stops
an answer, and at the prompt it leaves.

Examples:
  firp chat model.gguf
  firp chat -m model.gguf --temp 0.8 --system-prompt "You answer in one sentence."
  printf 'My name is Ada.\nWhat is my name?\n' | firp chat -m model.gguf)");
  flags->decode.add_model_to(*app);
  app->add_option("--system-prompt", flags->system_prompt, "What the model is told first");
  app->add_option("-n,--predict,--n-predict", flags->tokens, "Tokens of an answer at most")
      ->capture_default_str();
  flags->decode.add_decoding_to(*app);
  flags->decode.add_engine_to(*app);
  flags->decode.add_draft_to(*app);
  flags->decode.add_colour_to(*app);
  return {app, [flags] { return run_chat(*flags); }};
}

}  // namespace firp
