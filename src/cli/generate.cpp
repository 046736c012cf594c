#include <fmt/format.h>
#include <unistd.h>

#include <memory>
#include <optional>

#include "base/error.h"
#include "chat/conversation.h"
#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "model/message.h"
#include "model/text_input.h"

namespace firp {
namespace {

struct GenerateFlags {
  DecodeFlags decode;
  std::optional<std::string> prompt;
  std::string prompt_file;
  int tokens = 1024;
  bool raw = false;
};

/// -p as it stands, else the text of -f, else what is piped in.
std::string read_prompt(const GenerateFlags& flags) {
  std::string prompt = flags.prompt.value_or("");
  if (!flags.prompt_file.empty() && flags.prompt_file != "-") {
    prompt = prompt_of_bytes(TextInput("the prompt", flags.prompt_file).text());
  } else if (flags.prompt_file == "-" || (!flags.prompt && isatty(STDIN_FILENO) == 0)) {
    prompt = prompt_of_bytes(TextInput::standard("the prompt on standard input").text());
  }
  if (prompt.empty()) {
    throw Error("the prompt is empty; give one with -p TEXT, with -f FILE, or through a pipe");
  }
  require_utf8(prompt, "the prompt");
  return prompt;
}

int run_generate(const GenerateFlags& flags) {
  const int most = most_tokens(flags.tokens, /*least=*/0);
  const std::string prompt = read_prompt(flags);
  std::vector<Token> tokens;
  Decoder decoder(
      flags.decode, std::span(&flags.decode.tree, 1),
      [&](const ChatTemplate& chat_template, int context) {
        const Vocabulary& vocabulary = chat_template.vocabulary();
        vocabulary.require_fits(prompt.size(), context);
        tokens = flags.raw ? vocabulary.tokenize(prompt, /*add_bos=*/true)
                           : Conversation(chat_template).user_turn(prompt);
        if (std::ssize(tokens) > context) {
          throw Error(fmt::format("the prompt's {} tokens do not fit into a context of {} (-c)",
                                  tokens.size(), context));
        }
      });
  const Vocabulary& vocabulary = decoder.vocabulary;
  Session session(decoder.batch, decoder.options);
  session.append(tokens);

  catch_interrupts();
  TextPrinter printer(use_colour(flags.decode.colour));
  // Of -n 0 the prompt's time is all that there is to see.
  Session* const only = &session;
  while (most == 0 && !interrupted && session.is_reading()) decoder.batch.step({&only, 1});
  DecodeStats stats = generate(
      session, most, [&](Token token) { return vocabulary.is_end_of_generation(token); },
      [&](const DecodedToken& token) {
        printer.print(vocabulary.piece(token.token), token.drafted);
        return !interrupted;
      });
  printer.finish();
  stats.prefill_seconds = session.stats().prefill_seconds;
  if (static_cast<int>(session.tokens().size()) >= session.context()) {
    say("firp: the context of {} tokens is full (-c)\n", session.context());
  }
  say("firp: {}\n", describe_run(stats, decoder, tokens.size()));
  return interrupted ? kExitInterrupted : 0;
}

}  // namespace

Verb add_generate(CLI::App& program) {
  CLI::App* app = program.add_subcommand("generate", "Write the answer to a prompt");
  const auto flags = std::make_shared<GenerateFlags>();
  app->footer(R"(
The prompt is a user's turn of the model's chat template; with --raw, or where the model has no
template, it is text that the model goes on with. Without -p and -f it is read from standard input,
if that is no terminal. Of a file, or of what is piped in, the last line break does not belong to the
prompt, nor does a byte order mark; line breaks of Windows become plain ones. -p is taken as it
stands. The text goes to standard output, what it took to standard error. Drafts never change the
text; with --engine llama that takes --exact.

Examples:
  firp generate model.gguf -p "Why is the sky blue?"
  firp generate -m model.gguf --raw -p "Once upon a time" -n 100 --temp 0.8 --seed 1
  firp generate -m model.gguf -f question.txt --draft none > answer.txt
  echo "Why is the sky blue?" | firp generate model.gguf)");
  flags->decode.add_model_to(*app);
  CLI::Option* prompt = app->add_option("-p,--prompt", flags->prompt, "The prompt");
  app->add_option("-f,--file", flags->prompt_file,
                  "A file that holds the prompt; -: standard input")
      ->excludes(prompt);
  app->add_option("-n,--predict,--n-predict", flags->tokens, kPredictHelp)->capture_default_str();
  app->add_flag("--raw", flags->raw, "No chat template: go on with the prompt's text");
  flags->decode.add_decoding_to(*app);
  flags->decode.add_engine_to(*app);
  flags->decode.add_draft_to(*app);
  flags->decode.add_colour_to(*app);
  flags->decode.add_template_to(*app);
  return {app, [flags] { return run_generate(*flags); }};
}

}  // namespace firp
