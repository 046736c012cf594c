#include "train/train.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "engine/llama_engine.h"
#include "engine/native_engine.h"
#include "model/vocabulary.h"
#include "train/by_distillation.h"
#include "train/by_regression.h"
#include "train/checkpoint.h"
#include "train/phase.h"
#include "train/synthesis.h"
#include "train/training_log.h"
#include "train/training_run.h"

namespace firp {
namespace {

constexpr int kTextPositions = 2048;  // a prompt and its answer, at most
constexpr int kRowsAPass = 256;       // of the engine
constexpr int kTextsAtOnce = 8;       // of that length, in llama.cpp's cache

void check_options(const TrainOptions& options) {
  const auto require = [](bool holds, const std::string& what) {
    if (!holds) {
      throw Error(what);
    }
  };
  require(options.draft_steps >= 1 && options.draft_steps <= kMaxDraftSteps,
          fmt::format("draft steps must be 1 to {}", kMaxDraftSteps));
  require(options.sequence_rank >= 0 && options.sequence_rank <= kMaxSequenceRank,
          fmt::format("the sequential head's rank must be 0 to {}", kMaxSequenceRank));
  require(options.adapter_rank >= 0 && options.adapter_rank <= kMaxAdapterRank,
          fmt::format("the adapters' rank must be 0 to {}", kMaxAdapterRank));
  require(options.sequences >= 40,
          "at least 40 sequences are needed to train on and to measure with");
  require(options.answer_tokens >= 1000, "at least 1000 answer tokens are needed");
  require(options.max_answer >= 16 && options.max_answer <= 1024,
          "the longest answer must be 16 to 1024 tokens");
  require(options.updates >= 0, "the number of updates must be at least 1");
  require(options.updates > 0 || (std::isfinite(options.minutes) && options.minutes > 0),
          "the minutes of training must be more than 0");
  require(std::isfinite(options.learning_rate) && options.learning_rate > 0,
          "the learning rate must be more than 0");
  require(options.threads >= 0, "the number of threads must be at least 1");
}

/// nullopt where LibTorch does not know the architecture, and the engine may be llama.cpp.
std::optional<Model> known_model(const std::shared_ptr<const GgufFile>& file, TrainEngine engine) {
  if (engine == TrainEngine::kNative) return Model(file);
  try {
    return Model(file);
  } catch (const Unsupported&) {
    return std::nullopt;
  }
}

void check_layer(const TrainOptions& options, int layers) {
  if (options.method == HeadsMethod::kMedusa && options.layer != 0) {
    throw Error("Medusa's heads read the final state: there is no layer to choose (--layer)");
  }
  if (options.layer < 0 || options.layer > layers) {
    throw Error(fmt::format("the layer must be 1 to {}", layers));
  }
}

// As far as they make sense for the method and the layer.
TrainOptions applicable(TrainOptions options, int layers) {
  if (options.method == HeadsMethod::kMedusa) {
    options.layer = layers;
    options.token_input = false;
    options.sequence_rank = 0;
  }
  if (options.layer == layers) {
    options.adapter_rank = 0;  // there is no layer to adapt
  }
  return options;
}

// An output that cannot be written is found before the work, not after it.
void check_output(const TrainOptions& options) {
  const std::filesystem::path& output = options.output;
  std::error_code error;
  if (std::filesystem::is_directory(output, error)) {
    throw Error(fmt::format("the output {} is a directory", output.string()));
  }
  if (std::filesystem::equivalent(output, options.model, error)) {
    throw Error("the output is the model itself; choose another name");
  }
  const std::filesystem::path probe = checkpoint_path(options).string() + ".tmp";
  const bool good = std::ofstream(probe, std::ios::binary).put('x').flush().good();
  std::filesystem::remove(probe, error);
  if (!good) {
    throw Error(fmt::format("cannot write {}; does its directory exist?", output.string()));
  }
}

std::unique_ptr<Engine> make_engine(const std::shared_ptr<const GgufFile>& file,
                                    const std::optional<Model>& model, const TrainOptions& options,
                                    const std::atomic<bool>& stop) {
  const EngineOptions engine_options = {.threads = options.threads,
                                        .context = kTextPositions,
                                        .positions = kTextPositions * kTextsAtOnce,
                                        .max_rows = kRowsAPass,
                                        .cancelled = &stop};
  if (model && options.engine != TrainEngine::kLlama) {
    return std::make_unique<NativeEngine>(*model, engine_options);
  }
  return std::make_unique<LlamaEngine>(file, engine_options, options.llama);
}

/// The model's own, into the checkpoint.
void write_texts(Engine& engine, const Vocabulary& vocabulary, std::vector<std::string> prompts,
                 const TrainOptions& options, Checkpoint& checkpoint,
                 const TrainingRun::OnProgress& on_progress, const std::atomic<bool>& stop) {
  Phase phase(TrainPhase::kSynthesis, &checkpoint.phase_minutes[0], on_progress);
  checkpoint.texts = synthesize(engine, vocabulary,
                                {.sequences = options.sequences,
                                 .answer_tokens = options.answer_tokens,
                                 .max_answer = options.max_answer,
                                 .seed = options.seed,
                                 .prompts = std::move(prompts)},
                                [&](long long done, long long total) {
                                  phase.update(done, total);
                                  return !stop;
                                });
}

}  // namespace

TrainReport train(const TrainOptions& options,
                  const std::function<void(const TrainProgress&)>& on_progress,
                  const std::atomic<bool>& stop) {
  check_options(options);
  const auto file = std::make_shared<const GgufFile>(options.model);
  const std::optional<Model> model = known_model(file, options.engine);
  const bool written = !options.texts.empty() && std::filesystem::exists(options.texts);
  std::optional<Vocabulary> vocabulary;  // to write texts with
  if (!options.resume && !written) vocabulary.emplace(options.model);
  std::vector<std::string> prompts;
  if (!options.prompts.empty()) prompts = read_prompts(options.prompts);
  check_output(options);
  const std::filesystem::path saved = checkpoint_path(options);
  const ModelIdentity base = identify(*file);
  check_layer(options, base.layers);
  Checkpoint checkpoint;
  if (options.resume) {
    checkpoint = read_checkpoint(saved, base);
  } else if (std::filesystem::exists(saved)) {
    throw Error(
        fmt::format("{} is from an unfinished training: --resume goes on with it, or remove it",
                    saved.string()));
  }

  const std::unique_ptr<Engine> engine = make_engine(file, model, options, stop);
  at::set_num_threads(engine->options().threads);
  if (!options.log.empty()) {
    const TrainOptions& planned = options.resume ? checkpoint.options : options;
    begin_training_log(options.log, planned.draft_steps, options.resume);
  }
  if (!options.resume) {
    checkpoint.base = base;
    checkpoint.options = applicable(options, base.layers);
    checkpoint.layer = checkpoint.options.layer;
    if (written) {
      checkpoint.texts = read_checkpoint(options.texts, base).texts;
    } else {
      write_texts(*engine, *vocabulary, std::move(prompts), options, checkpoint, on_progress, stop);
    }
    if (stop) {
      TrainReport report;
      report.stopped = true;
      std::ranges::copy(checkpoint.phase_minutes, report.phase_minutes);
      return report;
    }
    write_checkpoint(checkpoint, saved);
    if (!options.texts.empty() && !written) write_checkpoint(checkpoint, options.texts);
  }
  TrainingRun run(std::move(checkpoint), options, on_progress, stop);
  return model ? train_by_distillation(*model, *engine, std::move(run))
               : train_by_regression(*file, *engine, std::move(run));
}

}  // namespace firp
