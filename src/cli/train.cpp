#include "train/train.h"

#include <fmt/format.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include "base/error.h"
#include "cli/decode_flags.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "cli/verbs.h"
#include "model/heads.h"
#include "model/message.h"

namespace firp {
namespace {

struct TrainFlags {
  DecodeFlags decode;
  std::string method = "firp";
  TrainOptions train;
};

#ifdef FIRP_HAS_TRAIN

std::string bar(const TrainProgress& progress) {
  constexpr int kWidth = 20;
  const double part =
      progress.total > 0 ? static_cast<double>(progress.done) / progress.total : 0.0;
  const int full = static_cast<int>(part * kWidth);
  return fmt::format("[{:#<{}}{:.<{}}] {:3.0f} %", "", full, "", kWidth - full, 100 * part);
}

std::string progress_text(const TrainProgress& progress) {
  std::string text = fmt::format("{} {}: {} of {} {}", bar(progress), phase_name(progress.phase),
                                 progress.done, progress.total, phase_unit(progress.phase));
  if (progress.phase == TrainPhase::kDistillation) {
    text += fmt::format(", loss {:.3f}", progress.loss);
    if (progress.rows_per_second > 0) {
      text += fmt::format(", {:.0f} rows/s", progress.rows_per_second);
    }
    const float chain = progress.evaluation.best().chain;
    if (chain > 0) text += fmt::format(", held-out chain {:.2f}", chain);
  }
  if (progress.done == progress.total) {
    text += fmt::format(", {}", duration(progress.elapsed_seconds));
  } else if (progress.eta_seconds >= 0) {
    text += fmt::format(", {} left", duration(progress.eta_seconds));
  }
  return text;
}

void print_report(const TrainReport& report, const TrainOptions& options) {
  const Evaluation& evaluation = report.evaluation;
  const bool sequence = !evaluation.sequence_top1.empty();
  fmt::print("\n{:<6}{:>8}{:>8}{}\n", "step", "top-1 %", "top-5 %",
             sequence ? "   top-1 % behind the true token" : "");
  for (std::size_t step = 0; step < evaluation.top1.size(); ++step) {
    fmt::print("{:<6}{:>8.1f}{:>8.1f}", step + 1, 100 * evaluation.top1[step],
               100 * evaluation.top5[step]);
    if (sequence) fmt::print("{:>10.1f}", 100 * evaluation.sequence_top1[step]);
    fmt::print("\n");
  }
  const auto print_rates = [](const char* what, const TokensPerForward& rates) {
    if (rates.chain == 0) return;
    fmt::print("{}chain {:.2f}, tree of 8 {:.2f}, of 16 {:.2f}, of 32 {:.2f}\n", what, rates.chain,
               rates.tree8, rates.tree16, rates.tree32);
  };
  fmt::print("\ntokens per forward pass:\n");
  print_rates("  maps alone           ", evaluation.maps);
  print_rates("  with sequential head ", evaluation.sequence);
  fmt::print(
      "measured on {} of {} texts that the training did not see; maps enter after layer {}\n",
      report.held_out_texts, report.texts, report.layer);
  double minutes = 0;
  for (const double phase : report.phase_minutes) minutes += phase;
  fmt::print("{:.1f} minutes, {} rows in {} updates\nwrote {}\n", minutes, report.rows,
             report.updates, options.output.string());
}

int run(const TrainOptions& options) {
  StatusLine status;
  bool begun = false;  // until then there is nothing to keep, and Ctrl-C ends the program at once
  const TrainReport report = train(
      options,
      [&](const TrainProgress& progress) {
        if (!std::exchange(begun, true)) catch_interrupts(Patience::kUntilItIsKept);
        if (!progress.note.empty()) status.keep(progress.note);
        if (progress.done == progress.total && progress.note.empty()) {
          status.keep(progress_text(progress));
        } else {
          status.show(progress_text(progress));
        }
      },
      interrupted);
  status.clear();
  if (report.heads_written) {
    print_report(report, options);
    flush_output();
  }
  if (report.stopped) {
    say("firp: stopped after {} of {} updates{}; --resume goes on\n", report.updates,
        report.planned_updates, report.heads_written ? "" : ", before there were any heads");
    return kExitInterrupted;
  }
  return 0;
}

#endif

std::string command_line(char** arguments) {
  std::string line = "firp";
  for (char** word = arguments + 1; *word != nullptr; ++word) line += fmt::format(" {}", *word);
  return line;
}

int run_train(TrainFlags& flags, char** arguments) {
  TrainOptions& options = flags.train;
  options.model = flags.decode.model;
  if (flags.method == "medusa") options.method = HeadsMethod::kMedusa;
  options.threads = flags.decode.thread_count();
  if (flags.decode.engine == "native") options.engine = TrainEngine::kNative;
  if (flags.decode.engine == "llama" || offloads(flags.decode.llama)) {
    options.engine = TrainEngine::kLlama;
  }
  options.llama = flags.decode.llama;
  if (flags.decode.seed) options.seed = seed_of(*flags.decode.seed);
  options.command = command_line(arguments);
  if (options.output.empty()) options.output = heads_beside(options.model);
#ifdef FIRP_HAS_TRAIN
  return run(options);
#else
  // LibTorch takes half a second to load: the other verbs do without it, in a program of their own.
  execv((program_directory() / "firp-train").c_str(), arguments);
  throw Error(
      "firp-train is not beside this program: `make build` makes it, with LibTorch (Debian: "
      "libtorch-dev)");
#endif
}

}  // namespace

Verb add_train(CLI::App& program, char** arguments) {
  CLI::App* app = program.add_subcommand("train", "Make heads for a model, with nothing but it");
  const auto flags = std::make_shared<TrainFlags>();
  TrainOptions& options = flags->train;
  app->footer(R"(
The model writes its own training text; no data set is needed. Ctrl-C keeps what was learnt, once
the update under way is done, and --resume goes on from there; a second Ctrl-C ends at once.

Examples:
  firp train model.gguf
  firp train -m model.gguf -o model.firp.gguf --minutes 60
  firp train -m model.gguf --resume)");
  flags->decode.add_model_to(*app);
  flags->decode.add_engine_to(*app);
  app->add_option("-o,--output", options.output, "The heads file (default: MODEL.firp.gguf)");
  app->add_option("--minutes", options.minutes, "Length of the distillation, the longest phase")
      ->capture_default_str();
  app->add_option("--updates", options.updates,
                  "Its length in optimiser steps instead: repeatable with a seed");
  app->add_option("--method", flags->method,
                  "firp, or medusa: the heads of that method, to compare with")
      ->check(CLI::IsMember({"firp", "medusa"}))
      ->capture_default_str();
  app->add_option("--texts", options.texts,
                  "Keep the training texts in this file; where it exists, train on them again");
  app->add_option("--log", options.log,
                  "Write a line of CSV at each quick evaluation: time, loss, held-out figures");
  app->add_option("--prompts", options.prompts,
                  "User turns to answer beside the model's own, JSONL with \"turns\"");
  app->add_option("--steps", options.draft_steps, "Tokens to look ahead: maps to train")
      ->capture_default_str();
  app->add_flag(
      "!--no-token-input", options.token_input,
      "Maps that do not read the token behind the anchor: the paper's, which can draft in "
      "the same pass");
  app->add_option("--sequence-rank", options.sequence_rank,
                  "Width of the sequential head; 0: maps alone")
      ->capture_default_str();
  app->add_option("--adapter-rank", options.adapter_rank,
                  "Width of the adapters on pseudo rows; 0: none")
      ->capture_default_str();
  app->add_option("--layer", options.layer, "Layer where pseudo rows enter (default: by a scan)");
  app->add_option("--sequences", options.sequences, "Texts to write at most")
      ->capture_default_str();
  app->add_option("--answer-tokens", options.answer_tokens, "Tokens of all answers at most")
      ->capture_default_str();
  app->add_option("--max-answer", options.max_answer, "Tokens of one answer at most")
      ->capture_default_str();
  app->add_option("--learning-rate", options.learning_rate, "At its peak")->capture_default_str();
  app->add_option("-s,--seed", flags->decode.seed,
                  "Seed of everything random (default: 1); -1: any");
  app->add_flag("--resume", options.resume, "Go on from OUTPUT.checkpoint");
  return {app, [flags, arguments] { return run_train(*flags, arguments); }};
}

}  // namespace firp
