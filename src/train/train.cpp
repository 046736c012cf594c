#include "train/train.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <cmath>
#include <fstream>
#include <limits>
#include <numeric>
#include <optional>

#include "base/error.h"
#include "engine/llama_engine.h"
#include "engine/native_engine.h"
#include "model/vocabulary.h"
#include "train/checkpoint.h"
#include "train/distillation.h"
#include "train/evaluation.h"
#include "train/layer_scan.h"
#include "train/phase.h"
#include "train/regression.h"
#include "train/ridge.h"
#include "train/synthesis.h"
#include "train/teacher.h"
#include "train/training.h"
#include "train/training_log.h"
#include "train/upper_layers.h"

namespace firp {
namespace {

constexpr int kTextPositions = 2048;  // a prompt and its answer, at most
constexpr int kRowsAPass = 256;       // of the engine
constexpr int kTextsAtOnce = 8;       // of that length, in llama.cpp's cache
constexpr double kCheckpointSeconds = 60;
constexpr int kQuickTexts = 6;        // held-out texts of the figures shown while training
constexpr double kQuickShare = 0.05;  // of the time may go into those figures
constexpr long long kRidgeAnchors = 60000;
constexpr int kRidgeSampleTexts = 64;            // for the standardisation
constexpr int kSpeedFirst = 5, kSpeedLast = 25;  // updates whose speed plans --minutes
constexpr double kMemoryShare = 0.5;             // of the machine's, for what the teacher says

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

std::size_t physical_memory_bytes() {
  return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::size_t>(sysconf(_SC_PAGE_SIZE));
}

Maps warm_start(const UpperLayers& upper, std::span<const TeacherText> texts,
                const TrainOptions& options, Phase& phase) {
  std::vector<torch::Tensor> sample;
  for (const TeacherText& text :
       texts.first(std::min<std::size_t>(texts.size(), kRidgeSampleTexts))) {
    sample.push_back(text.hidden);
  }
  if (options.method == HeadsMethod::kMedusa) {
    const torch::Tensor states = upper.normed(torch::cat(sample)).cpu();
    const std::int64_t steps = options.draft_steps, d = states.size(1);
    return {.layer = upper.first_layer(),
            .mean = states.mean(0),
            .deviation = states.std(0),
            .weight = torch::zeros({steps, d, d}),
            .bias = torch::zeros({steps, d}),
            .method = options.method};
  }
  RidgeRegression regression(
      upper.first_layer(), options.draft_steps, torch::cat(sample),
      options.token_input ? std::optional(upper.embedding_scale()) : std::nullopt);
  for (const TeacherText& text : texts) {
    regression.add(text.hidden,
                   upper.embeddings(tokens_behind(text.tokens, text.hidden.size(0))).cpu());
    if (regression.anchors() >= kRidgeAnchors) {
      break;
    }
  }
  const Maps maps = regression.solve();
  phase.update(options.draft_steps, options.draft_steps);
  return maps;
}

SequentialHeads fresh_sequence(const UpperLayers& upper, const TrainOptions& options) {
  const double state_scale = 1 / upper.output_norm().square().mean().sqrt().item<double>();
  return SequentialHeads::initial(options.draft_steps, options.sequence_rank, upper.head().size(1),
                                  state_scale, upper.embedding_scale(), options.seed);
}

}  // namespace

const char* phase_name(TrainPhase phase) {
  switch (phase) {
    case TrainPhase::kSynthesis:
      return "Writing training text";
    case TrainPhase::kLayerScan:
      return "Choosing the layer";
    case TrainPhase::kCapture:
      return "Reading hidden states";
    case TrainPhase::kWarmStart:
      return "Ridge regression";
    case TrainPhase::kDistillation:
      return "Training";
    case TrainPhase::kEvaluation:
      return "Measuring";
  }
  return "";
}

const char* phase_unit(TrainPhase phase) {
  switch (phase) {
    case TrainPhase::kSynthesis:
    case TrainPhase::kCapture:
      return "tokens";
    case TrainPhase::kLayerScan:
      return "steps";
    case TrainPhase::kWarmStart:
      return "maps";
    case TrainPhase::kDistillation:
      return "updates";
    case TrainPhase::kEvaluation:
      return "texts";
  }
  return "";
}

std::filesystem::path checkpoint_path(const TrainOptions& options) {
  return options.output.string() + ".checkpoint";
}

TrainingRecord training_record(const TrainReport& report, const TrainOptions& options) {
  const Evaluation& result = report.evaluation;
  return {.command = options.command,
          .minutes = std::accumulate(std::begin(report.phase_minutes),
                                     std::end(report.phase_minutes), 0.0),
          .rows = report.rows,
          .top1 = result.top1,
          .top5 = result.top5,
          .sequence_top1 = result.sequence_top1,
          .tokens_per_forward_chain = result.best().chain,
          .tokens_per_forward_tree32 = result.best().tree32};
}

TrainReport train_on_texts(const Model& model, Engine& engine, Checkpoint checkpoint,
                           const TrainOptions& options,
                           const std::function<void(const TrainProgress&)>& on_progress,
                           const std::atomic<bool>& stop) {
  at::set_num_threads(engine.options().threads);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  const torch::Device device = fast_device();
  const TrainOptions& planned = checkpoint.options;
  const std::filesystem::path saved = checkpoint_path(options);
  const auto begin_phase = [&](TrainPhase phase) {
    return Phase(phase, &checkpoint.phase_minutes[static_cast<int>(phase)], on_progress);
  };

  TrainReport report;
  report.texts = static_cast<long long>(checkpoint.texts.size());
  for (const Text& text : checkpoint.texts) {
    report.held_out_texts += text.held_out;
    report.answer_tokens += text.answer_tokens();
  }
  const auto stopped_without_heads = [&] {
    write_checkpoint(checkpoint, saved);
    std::ranges::copy(checkpoint.phase_minutes, report.phase_minutes);
    report.stopped = true;
    return report;
  };

  if (checkpoint.layer == 0) {
    Phase phase = begin_phase(TrainPhase::kLayerScan);
    try {
      checkpoint.layer = choose_layer(engine, model, checkpoint.texts, planned.draft_steps,
                                      planned.token_input, [&](int done, int total) {
                                        phase.update(done, total);
                                        return !stop;
                                      });
    } catch (const Cancelled&) {  // no layer is chosen
    }
    if (checkpoint.layer != 0) {
      phase.note(fmt::format("pseudo rows enter after layer {} of {}", checkpoint.layer,
                             model.config().layers));
    }
  }
  if (stop || checkpoint.layer == 0) {
    return stopped_without_heads();
  }
  report.layer = checkpoint.layer;

  // The teacher's view of all texts, as many as the memory holds.
  const UpperLayers upper(model, checkpoint.layer, device, fast_type(device));
  std::vector<TeacherText> train_texts, held_out_texts;
  {
    Phase phase = begin_phase(TrainPhase::kCapture);
    const std::size_t limit =
        static_cast<std::size_t>(kMemoryShare * static_cast<double>(physical_memory_bytes()));
    const std::size_t token_bytes = teacher_bytes_per_token(model.config(), checkpoint.layer);
    long long total = 0, done = 0;
    std::size_t usable = 0;
    while (usable < checkpoint.texts.size() && total * token_bytes < limit) {
      total += static_cast<long long>(checkpoint.texts[usable++].tokens.size());
    }
    if (usable < checkpoint.texts.size()) {
      phase.note(
          fmt::format("{} of {} texts fit into the memory", usable, checkpoint.texts.size()));
    }
    for (const Text& text : std::span(checkpoint.texts).first(usable)) {
      try {
        (text.held_out ? held_out_texts : train_texts).push_back(run_teacher(engine, upper, text));
      } catch (const Cancelled&) {
        break;
      }
      done += static_cast<long long>(text.tokens.size());
      phase.update(done, total);
      if (stop) {
        break;
      }
    }
  }
  if (stop) {
    return stopped_without_heads();
  }
  if (train_texts.empty() || held_out_texts.empty()) {
    throw Error("there is too little training text, or too little memory for it");
  }

  if (!checkpoint.state) {
    Phase phase = begin_phase(TrainPhase::kWarmStart);
    Maps maps = warm_start(upper, train_texts, planned, phase);
    if (planned.sequence_rank > 0) {
      maps.sequence = fresh_sequence(upper, planned);
    }
    if (planned.adapter_rank > 0) {
      maps.adapters = Adapters::initial(upper.layers(), planned.adapter_rank, upper.head().size(1),
                                        planned.seed);
    }
    checkpoint.state = Distillation::initial_state(std::move(maps));
  }

  const auto hidden_of = [](const TeacherText& text) -> const torch::Tensor& {
    return text.hidden;
  };
  Evaluation last_quick;
  double last_loss = 0;
  {
    Phase phase = begin_phase(TrainPhase::kDistillation);
    const double minutes_before =
        checkpoint.phase_minutes[static_cast<int>(TrainPhase::kDistillation)];
    Distillation distillation(upper, train_texts, *checkpoint.state, planned.learning_rate,
                              planned.seed);
    if (planned.updates > 0) {
      checkpoint.planned_updates = planned.updates;
    }
    const int first = distillation.state().updates;
    const int rows_an_update = kSequencesAnUpdate * kAnchorsASequence * planned.draft_steps;
    const auto quick =
        std::span(held_out_texts).first(std::min<std::size_t>(held_out_texts.size(), kQuickTexts));
    double training_seconds = 0, speed_begin = 0, next_quick = 0, last_save = now_seconds();
    double loss_sum = 0;
    int loss_count = 0;
    const auto evaluate_quickly = [&] {
      const Distillation::State& state = distillation.state();
      const Evaluation now =
          evaluate(upper, state.maps, quick, hidden_of, {}, [&](int) { return !stop; });
      if (stop) return;
      last_quick = now;
      phase.progress().evaluation = last_quick;
      if (options.log.empty()) return;
      append_to_training_log(
          options.log,
          {.seconds =
               phase.elapsed() + 60 * std::accumulate(std::begin(checkpoint.phase_minutes),
                                                      std::end(checkpoint.phase_minutes), 0.0),
           .updates = state.updates,
           .rows = static_cast<long long>(state.updates) * rows_an_update,
           .loss = last_loss > 0 ? last_loss : std::numeric_limits<double>::quiet_NaN(),
           .top1 = last_quick.top1,
           .tokens_per_forward = last_quick.best()});
    };
    const auto done = [&] {
      return checkpoint.planned_updates > 0 &&
             distillation.state().updates >= checkpoint.planned_updates;
    };
    while (!stop && !done()) {
      if (now_seconds() >= next_quick) {
        const double begin = now_seconds();
        evaluate_quickly();
        const double took = now_seconds() - begin;
        next_quick = now_seconds() + std::max(15.0, took / kQuickShare);
      }
      const double begin = now_seconds();
      loss_sum += distillation.update(checkpoint.planned_updates > 0 ? checkpoint.planned_updates
                                                                     : INT_MAX);
      training_seconds += now_seconds() - begin;
      const int updates = distillation.state().updates;
      if (++loss_count == 20 || updates == 1) {
        last_loss = loss_sum / loss_count;
        loss_sum = 0;
        loss_count = 0;
      }
      if (!std::isfinite(last_loss)) {
        throw Error("the training diverged; try a smaller learning rate");
      }
      if (updates - first == kSpeedFirst) {
        speed_begin = training_seconds;
      }
      if (checkpoint.planned_updates == 0 && updates - first == kSpeedLast) {
        const double update_seconds = (training_seconds - speed_begin) / (kSpeedLast - kSpeedFirst);
        const double left =
            (planned.minutes - minutes_before) * 60 * (1 - kQuickShare) - training_seconds;
        checkpoint.planned_updates = updates + std::max(0, static_cast<int>(left / update_seconds));
      }
      phase.progress().loss = last_loss;
      phase.progress().rows_per_second = rows_an_update * (updates - first) / training_seconds;
      phase.update(updates, std::max(updates + 1, checkpoint.planned_updates));
      if (now_seconds() - last_save > kCheckpointSeconds) {
        checkpoint.state = distillation.state();
        Checkpoint with_time = checkpoint;
        with_time.phase_minutes[static_cast<int>(TrainPhase::kDistillation)] +=
            phase.elapsed() / 60;
        write_checkpoint(with_time, saved);
        last_save = now_seconds();
      }
    }
    if (!options.log.empty() && done()) evaluate_quickly();  // a curve ends where training does
    checkpoint.state = distillation.state();
    report.stopped = !done();
    report.updates = distillation.state().updates;
    report.planned_updates = checkpoint.planned_updates;
    report.rows = static_cast<long long>(report.updates) * rows_an_update;
    if (!report.stopped) {
      phase.update(report.updates, report.updates);
    }
  }
  write_checkpoint(checkpoint, saved);

  Heads heads = to_heads(checkpoint.state->maps, checkpoint.base);
  heads.draft_vocabulary = tokens_by_frequency(train_texts, model.config().vocabulary_size);
  if (heads.draft_vocabulary.size() > kDraftVocabulary) {
    heads.draft_vocabulary.resize(kDraftVocabulary);
  }
  Evaluation result = last_quick;
  if (!report.stopped) {
    Phase phase = begin_phase(TrainPhase::kEvaluation);
    const int total = static_cast<int>(held_out_texts.size());
    result = evaluate(upper, from_heads(heads).to(device), held_out_texts, hidden_of,
                      heads.draft_vocabulary, [&](int done) {
                        phase.update(done, total);
                        return !stop;
                      });
  }
  report.evaluation = result;
  std::ranges::copy(checkpoint.phase_minutes, report.phase_minutes);
  heads.training = training_record(report, options);
  write_heads(heads, options.output);
  report.heads_written = true;
  if (!report.stopped) {
    std::error_code ignored;
    std::filesystem::remove(saved, ignored);
  }
  return report;
}

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
  if (!options.prompts.empty()) {
    prompts = read_prompts(options.prompts);
  }
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

  const EngineOptions engine_options = {.threads = options.threads,
                                        .context = kTextPositions,
                                        .positions = kTextPositions * kTextsAtOnce,
                                        .max_rows = kRowsAPass,
                                        .cancelled = &stop};
  std::unique_ptr<Engine> made;
  if (model && options.engine != TrainEngine::kLlama) {
    made = std::make_unique<NativeEngine>(*model, engine_options);
  } else {
    made = std::make_unique<LlamaEngine>(file, engine_options, options.llama);
  }
  Engine& engine = *made;
  at::set_num_threads(engine.options().threads);

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
      Phase phase(TrainPhase::kSynthesis, &checkpoint.phase_minutes[0], on_progress);
      checkpoint.texts = synthesize(engine, *vocabulary,
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
    if (stop) {
      TrainReport report;
      report.stopped = true;
      std::ranges::copy(checkpoint.phase_minutes, report.phase_minutes);
      return report;
    }
    write_checkpoint(checkpoint, saved);
    if (!options.texts.empty() && !written) {
      write_checkpoint(checkpoint, options.texts);
    }
  }
  if (!model) {
    try {
      return train_by_regression(*file, engine, std::move(checkpoint), options, on_progress, stop);
    } catch (const Cancelled&) {
      TrainReport report;
      report.stopped = true;
      return report;
    }
  }
  return train_on_texts(*model, engine, std::move(checkpoint), options, on_progress, stop);
}

}  // namespace firp
