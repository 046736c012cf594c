#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "engine/llama_engine.h"
#include "model/heads.h"

namespace firp {

/// Which engine the model runs on: kAny is the native one where it knows the architecture.
enum class TrainEngine { kAny, kNative, kLlama };

/// What `firp train` is asked to do. docs/training.md explains every value.
struct TrainOptions {
  std::filesystem::path model;
  std::filesystem::path output;  ///< the heads file to write; OUTPUT.checkpoint lies beside it
  std::filesystem::path
      prompts;  ///< JSONL, one object with "turns": ["...", ..] a line; empty: none

  /// Medusa's heads have no token input, no sequential head, no adapters, and no layer to choose.
  HeadsMethod method = HeadsMethod::kFirp;
  int draft_steps = 4;         ///< K: maps to train, 1 .. kMaxDraftSteps
  bool token_input = true;     ///< maps read the token behind the anchor, too
  int sequence_rank = 256;     ///< r of the sequential head, 0 .. kMaxSequenceRank; 0: maps alone
  int adapter_rank = 16;       ///< r of the adapters, 0 .. kMaxAdapterRank; 0: none
  int layer = 0;               ///< t of all maps, 1 .. layers; 0: the ridge scan chooses
  int sequences = 1200;        ///< texts to synthesise, at most
  int answer_tokens = 180000;  ///< tokens of the model's own answers to synthesise, at most
  int max_answer = 256;        ///< tokens of one answer, at most

  /// Where the texts are kept: read if the file is there, else written. Empty: not kept.
  std::filesystem::path texts;
  /// CSV that gets a line at each quick evaluation (train/training_log.h); with `resume`, behind
  /// those that are there. Empty: none.
  std::filesystem::path log;

  /// Length of the distillation: `updates` optimiser steps, or where that is 0 as many as fit into
  /// `minutes` by the speed measured in its first updates. Only the first kind gives the same
  /// result on every run with the same seed, threads and machine.
  int updates = 0;
  double minutes = 4;
  float learning_rate = 2e-3f;  ///< at its peak; cosine decay to a hundredth

  int threads = 0;  ///< 0: one per usable core
  TrainEngine engine = TrainEngine::kAny;
  LlamaOptions llama;  ///< of llama.cpp's
  std::uint64_t seed = 1;
  /// Goes on from OUTPUT.checkpoint. The method, draft steps, layer, learning rate, seed, the texts
  /// and the length are those that the checkpoint was started with.
  bool resume = false;
  std::string command;  ///< for the heads file's record
};

inline constexpr int kMaxDraftSteps = 8;
inline constexpr int kMaxSequenceRank = 4096;
inline constexpr int kMaxAdapterRank = 1024;

/// OUTPUT.checkpoint: what --resume goes on from. Removed when training has ended.
std::filesystem::path checkpoint_path(const TrainOptions& options);

enum class TrainPhase {
  kSynthesis,     ///< unit: answer tokens
  kLayerScan,     ///< unit: candidate layers; left out where options.layer is given
  kCapture,       ///< teacher-forced pass over all texts; unit: tokens
  kWarmStart,     ///< ridge regression; unit: maps
  kDistillation,  ///< unit: updates
  kEvaluation,    ///< on held-out texts; unit: texts
};
inline constexpr int kTrainPhases = 6;
/// "Writing training text", "Choosing the layer", ...
const char* phase_name(TrainPhase phase);
const char* phase_unit(TrainPhase phase);

/// Tokens per forward pass.
struct TokensPerForward {
  float chain = 0;  ///< of K drafts
  float tree8 = 0, tree16 = 0, tree32 = 0;
};

struct Evaluation {
  /// Agreement of each step with the model's own token, 0..1: of the rows, and of the sequential
  /// head's ranking behind the true token (empty without one).
  std::vector<float> top1, top5, sequence_top1;
  TokensPerForward maps;      ///< the rows alone; 0 where that was not measured
  TokensPerForward sequence;  ///< with the sequential head; 0 without one

  /// Of what will be decoded with.
  const TokensPerForward& best() const { return sequence.chain > 0 ? sequence : maps; }
};

/// Sent some times a second at most, and at the end of each phase (done == total).
struct TrainProgress {
  TrainPhase phase;
  long long done = 0;
  long long total = 0;
  double elapsed_seconds = 0;  ///< in this phase
  double eta_seconds = -1;     ///< to the end of this phase; negative: not known yet
  // Of the distillation:
  double rows_per_second = 0;
  double loss = 0;        ///< mean KL a row, in nats, over the last updates
  Evaluation evaluation;  ///< the last on a few held-out texts; its rates are 0 before the first
  std::string note;       ///< a line worth keeping (the layer chosen, a checkpoint written); or ""
};

/// Held-out results of the heads as they are written (weights rounded to F16), and what it took.
struct TrainReport {
  Evaluation evaluation;
  int layer = 0;
  long long texts = 0, held_out_texts = 0, answer_tokens = 0;
  long long rows = 0;  ///< pseudo rows that the distillation saw
  int updates = 0;     ///< done, of
  int planned_updates = 0;
  double phase_minutes[kTrainPhases] = {};
  bool stopped = false;        ///< by the stop flag; --resume goes on
  bool heads_written = false;  ///< false only where it was stopped before there were any maps
};

/// Trains draft maps for a model and writes them to options.output.
///
/// Everything that can be refused is refused before the first second of work: a model, prompts file
/// or checkpoint that cannot be used, an output that cannot be written. When `stop` becomes true
/// (from a signal handler, for one), the checkpoint and the maps learnt so far are written and the
/// call returns soon; a second train() with `resume` continues.
TrainReport train(const TrainOptions& options,
                  const std::function<void(const TrainProgress&)>& on_progress,
                  const std::atomic<bool>& stop);

}  // namespace firp
