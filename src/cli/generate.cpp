#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "decode/conversation.h"
#include "model/error.h"

namespace firp {
namespace {

struct GenerateFlags {
  DecodeFlags decode;
  std::string prompt;
  std::string prompt_file;
  int tokens = 1024;
  bool raw = false;
};

std::string read_prompt(const GenerateFlags& flags) {
  std::string prompt = flags.prompt;
  if (!flags.prompt_file.empty()) {
    const std::unique_ptr<std::FILE, decltype(&std::fclose)> file(
        std::fopen(flags.prompt_file.c_str(), "rb"), &std::fclose);
    char part[4096];
    while (file != nullptr && !std::feof(file.get()) && !std::ferror(file.get())) {
      prompt.append(part, std::fread(part, 1, sizeof part, file.get()));
    }
    if (file == nullptr || std::ferror(file.get())) {
      throw Error(
          fmt::format("cannot read the prompt {}: {}", flags.prompt_file, std::strerror(errno)));
    }
  }
  if (prompt.empty()) throw Error("the prompt is empty; give one with -p TEXT or -f FILE");
  require_utf8(prompt, "the prompt");
  return prompt;
}

int run_generate(const GenerateFlags& flags) {
  const std::string prompt = read_prompt(flags);
  require_at_least(flags.tokens, 1, "-n");
  std::vector<Token> tokens;
  Decoder decoder(
      flags.decode, std::span(&flags.decode.tree, 1),
      [&](const Vocabulary& vocabulary, int context) {
        vocabulary.require_fits(prompt.size(), context);
        tokens = flags.raw ? vocabulary.tokenize(prompt, /*add_bos=*/true)
                           : Conversation(vocabulary).user_turn(prompt);
        if (std::ssize(tokens) > context) {
          throw Error(fmt::format("the prompt's {} tokens do not fit into a context of {} (-c)",
                                  tokens.size(), context));
        }
      });
  const Vocabulary& vocabulary = decoder.vocabulary;
  Session session(decoder.engine, decoder.options);
  session.append(tokens);

  catch_interrupts();
  TextPrinter printer(use_colour(flags.decode.colour));
  const DecodeStats stats = generate(
      session, flags.tokens, [&](Token token) { return vocabulary.is_end_of_generation(token); },
      [&](const DecodedToken& token) {
        printer.print(vocabulary.piece(token.token), token.drafted);
        return !interrupted;
      });
  printer.finish();
  if (static_cast<int>(session.tokens().size()) >= session.context()) {
    fmt::print(stderr, "firp: the context of {} tokens is full (-c)\n", session.context());
  }
  fmt::print(stderr, "firp: {}\n", describe_run(stats, decoder.options, tokens.size()));
  return interrupted ? kExitInterrupted : 0;
}

}  // namespace

Verb add_generate(CLI::App& program) {
  CLI::App* app = program.add_subcommand("generate", "Write the answer to a prompt");
  const auto flags = std::make_shared<GenerateFlags>();
  app->footer(R"(
The prompt is a user's turn of the model's chat template; with --raw, or where the model has no
template, it is text that the model goes on with. The text goes to standard output, what it took
to standard error. Drafts never change the text.

Examples:
  firp generate model.gguf -p "Why is the sky blue?"
  firp generate -m model.gguf --raw -p "Once upon a time" -n 100 --temp 0.8 --seed 1
  firp generate -m model.gguf -f question.txt --draft none > answer.txt)");
  flags->decode.add_model_to(*app);
  CLI::Option* prompt = app->add_option("-p,--prompt", flags->prompt, "The prompt");
  app->add_option("-f,--file", flags->prompt_file, "A file that holds the prompt")
      ->excludes(prompt);
  app->add_option("-n,--predict,--n-predict", flags->tokens, "Tokens to write at most")
      ->capture_default_str();
  app->add_flag("--raw", flags->raw, "No chat template: go on with the prompt's text");
  flags->decode.add_decoding_to(*app);
  flags->decode.add_engine_to(*app);
  flags->decode.add_draft_to(*app);
  flags->decode.add_colour_to(*app);
  return {app, [flags] { return run_generate(*flags); }};
}

}  // namespace firp
