#include <fcntl.h>
#include <fmt/format.h>
#include <ggml.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "model/cut_file.h"
#include "model/ggml_log.h"
#include "model/message.h"

namespace {

constexpr int kExitUserError = 1;
constexpr int kExitUsage = 2;

/// A file that we open must not become standard output because the caller closed that.
void open_standard_streams() {
  int file = open("/dev/null", O_RDWR);
  while (file >= 0 && file <= STDERR_FILENO) file = open("/dev/null", O_RDWR);
  if (file >= 0) close(file);
}

/// Instead of ggml's own end, a core dump: it has no other way to tell of a device or a server that
/// is gone.
void end_with_message(const char* message) {
  std::string text = message;  // "/where/ggml/was/built/x.cpp:12: what happened"
  if (const std::size_t file = text.find(".cpp:"); file != std::string::npos) {
    text.erase(0, std::min(text.find(": ", file), text.size() - 2) + 2);
  }
  while (text.ends_with('\n')) text.pop_back();
  firp::say("firp: llama.cpp cannot go on: {}\n", firp::one_line(text));
  _exit(kExitUserError);
}

/// A variable of a script that is not set, most often: CLI11 would take it for 0, or for nothing.
void refuse_empty_values(int argc, char** argv) {
  // A prompt has its own message, and a system prompt may be empty.
  constexpr std::string_view kMayBeEmpty[] = {"-p", "--prompt", "-sys", "--system-prompt"};
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const bool after_a_flag = word.empty() && argv[i - 1][0] == '-';
    const std::string_view flag = after_a_flag ? argv[i - 1] : word.substr(0, word.find('='));
    const bool empty = after_a_flag || (word.starts_with("--") && word.ends_with('=') &&
                                        word.size() == flag.size() + 1);
    if (empty && std::ranges::count(kMayBeEmpty, flag) == 0) {
      throw firp::Error(
          fmt::format("{} is empty: give it a value, or leave it out", firp::one_line(flag)));
    }
  }
}

int run(int argc, char** argv) {
  const firp::GgmlErrors quiet;  // libllama's log is ours from here on
  CLI::App program(
      "Runs GGUF language models, several tokens per forward pass, with the very text that plain\n"
      "decoding gives. Draft maps (\"heads\") come from the model itself: firp train.",
      "firp");
  program.set_version_flag("--version", "firp " FIRP_VERSION);
  program.require_subcommand(1);
  // Of a flag that is given twice the last one holds, as in llama.cpp. Verbs inherit this.
  program.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  program.footer(R"(
firp VERB --help tells about a verb. Start here:
  firp demo model.gguf
  firp chat model.gguf
  firp train model.gguf)");
  const std::vector<firp::Verb> verbs = {
      firp::add_generate(program), firp::add_chat(program),        firp::add_serve(program),
      firp::add_demo(program),     firp::add_train(program, argv), firp::add_bench(program),
      firp::add_inspect(program),  firp::add_study(program, argv), firp::add_rpc_server(program)};
  const auto is_named = [&](const firp::Verb& verb) { return verb.app->get_name() == argv[1]; };
  if (argc > 1 && argv[1][0] != '-' && std::ranges::none_of(verbs, is_named)) {
    firp::say("firp: there is no verb '{}' (see firp --help)\n", firp::one_line(argv[1]));
    return kExitUsage;
  }
  refuse_empty_values(argc, argv);
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      program.exit(error);
      firp::flush_output();
      return 0;
    }
    std::string verb;
    for (const CLI::App* app : program.get_subcommands()) verb = " " + app->get_name();
    firp::say("firp: {} (see firp{} --help)\n", firp::one_line(error.what()), verb);
    return kExitUsage;
  }
  for (const firp::Verb& verb : verbs) {
    if (verb.app->parsed()) return verb.run();
  }
  return kExitUsage;
}

}  // namespace

int main(int argc, char** argv) {
  open_standard_streams();
  // llama.cpp's names, which are no options to CLI11: one dash before several letters.
  static char names[][2][20] = {
      {"-ctk", "--cache-type-k"}, {"-ctv", "--cache-type-v"},    {"-md", "--model-draft"},
      {"-ngl", "--gpu-layers"},   {"-dev", "--device"},          {"-ts", "--tensor-split"},
      {"-fa", "--flash-attn"},    {"-np", "--parallel"},         {"-sys", "--system-prompt"},
      {"-kvu", "--kv-unified"},   {"-no-kvu", "--no-kv-unified"}};
  for (int i = 1; i < argc; ++i) {
    for (auto& [short_name, long_name] : names) {
      if (argv[i] == std::string_view(short_name)) argv[i] = long_name;
    }
  }
  ggml_set_abort_callback(end_with_message);
  firp::name_cut_files();
  signal(SIGINT, SIG_DFL);   // scripts start what runs in the background deaf to it
  signal(SIGPIPE, SIG_DFL);  // a reader that has gone ends us without a word
  signal(SIGXFSZ, SIG_IGN);  // a file over the size limit is an error of the write, with a message
  try {
    return run(argc, argv);
  } catch (const firp::Cancelled&) {
    return firp::kExitInterrupted;
  } catch (const firp::Error& error) {
    firp::say("firp: {}\n", error.what());
  } catch (const std::bad_alloc&) {
    std::fputs("firp: out of memory\n", stderr);
  } catch (const std::exception& error) {
    firp::say("firp: internal error: {}\n", error.what());
  }
  return kExitUserError;
}
