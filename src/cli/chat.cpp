#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <utility>

#include "base/error.h"
#include "chat/conversation.h"
#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "model/message.h"
#include "model/part_name.h"
#include "model/text_input.h"

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

int run_chat(const ChatFlags& flags) {
  const int most = most_tokens(flags.tokens);
  require_utf8(flags.system_prompt, "the system prompt");
  const auto check = [&](const ChatTemplate& known, int context) {
    known.vocabulary().require_fits(flags.system_prompt.size(), context);
    if (known.problem().empty()) return;
    throw Error(fmt::format("{}: {}; give one (--chat-template), or use `firp generate --raw`",
                            flags.decode.model.string(), known.problem()));
  };
  Decoder decoder(flags.decode, std::span(&flags.decode.tree, 1), check);
  const Vocabulary& vocabulary = decoder.vocabulary;
  const bool interactive = isatty(STDIN_FILENO) != 0;
  if (interactive) {
    say("{}; /help lists the commands, Ctrl-C stops an answer\n", model_name(flags.decode.model));
  }

  Session session(decoder.batch, decoder.options);
  Conversation conversation(decoder.chat_template, flags.system_prompt);
  DecodeStats all;
  std::size_t prompt_tokens = 0;
  std::string last = "no answer yet";
  TextPrinter printer(use_colour(flags.decode.colour));
  TextInput input = TextInput::standard("what you say");
  while (true) {
    // Before the prompt, as its answer may be Ctrl-C at once.
    catch_interrupts();
    // These are meant for the program, not for an answer.
    signal(SIGTERM, SIG_DFL);
    if (signal(SIGHUP, SIG_DFL) == SIG_IGN) signal(SIGHUP, SIG_IGN);  // nohup
    if (interactive) say("\n> ");
    std::string line;
    // Ctrl-C ends the chat.
    if (interactive && !wait_for_input(STDIN_FILENO)) break;
    if (interrupted || !input.next_line(line)) break;
    line = prompt_of_bytes(std::move(line));  // a file's first line may have a byte order mark
    if (line == "/exit") break;
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (line == "/help") {
      say("{}", kCommands);
    } else if (line == "/stats") {
      say("{}\n", last);
    } else if (line == "/reset") {
      session.truncate(0);
      conversation = Conversation(decoder.chat_template, flags.system_prompt);
    } else {
      try {
        vocabulary.require_fits(line.size(), session.context());
        Conversation next = conversation;
        const std::vector<Token> tokens = next.user_turn(line);
        session.append(tokens);
        conversation = std::move(next);
        const DecodeStats stats = generate(
            session, most, [&](Token token) { return vocabulary.is_end_of_generation(token); },
            [&](const DecodedToken& token) {
              printer.print(vocabulary.piece(token.token), token.drafted);
              return !interrupted;
            });
        printer.finish();
        if (interrupted && !interactive) return kExitInterrupted;
        all += stats;
        prompt_tokens += tokens.size();
        last = describe_run(stats, decoder, tokens.size());
        if (static_cast<int>(session.tokens().size()) >= session.context()) {
          throw Error(fmt::format("the context of {} tokens is full; /reset starts anew (-c)",
                                  session.context()));
        }
      } catch (const Error& error) {
        // A person can go on from here; a script cannot.
        if (!interactive) throw;
        say("firp: {}\n", error.what());
      }
    }
  }
  if (interactive) say("\n");
  if (all.tokens > 0) {
    say("firp: {}\n", describe_run(all, decoder, prompt_tokens));
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
  app->add_option("-n,--predict,--n-predict", flags->tokens, kPredictHelp)->capture_default_str();
  flags->decode.add_decoding_to(*app);
  flags->decode.add_engine_to(*app);
  flags->decode.add_draft_to(*app);
  flags->decode.add_colour_to(*app);
  flags->decode.add_template_to(*app);
  return {app, [flags] { return run_chat(*flags); }};
}

}  // namespace firp
