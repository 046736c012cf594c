#include "train/by_distillation.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <limits>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "train/distillation.h"
#include "train/evaluation.h"
#include "train/layer_scan.h"
#include "train/ridge.h"
#include "train/teacher.h"
#include "train/training_log.h"
#include "train/upper_layers.h"

namespace firp {
namespace {

constexpr double kCheckpointSeconds = 60;
constexpr int kQuickTexts = 6;        // held-out texts of the figures shown while training
constexpr double kQuickShare = 0.05;  // of the time may go into those figures
constexpr double kQuickSeconds = 15;  // between two of them, at least
constexpr long long kRidgeAnchors = 60000;
constexpr int kRidgeSampleTexts = 64;            // for the standardisation
constexpr int kSpeedFirst = 5, kSpeedLast = 25;  // updates whose speed plans --minutes
constexpr int kLossUpdates = 20;                 // whose mean is shown
constexpr double kMemoryShare = 0.5;             // of the machine's, for what the teacher says

std::size_t physical_memory_bytes() {
  return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) *
         static_cast<std::size_t>(sysconf(_SC_PAGE_SIZE));
}

const torch::Tensor& hidden_of(const TeacherText& text) { return text.hidden; }

/// Where the maps enter, if that is not known yet.
void choose_entry_layer(const Model& model, Engine& engine, TrainingRun& run) {
  if (run.checkpoint.layer == 0) {
    Phase phase = run.begin(TrainPhase::kLayerScan);
    run.checkpoint.layer =
        choose_layer(engine, model, run.checkpoint.texts, run.planned().draft_steps,
                     run.planned().token_input, [&](int done, int total) {
                       phase.update(done, total);
                       return !run.stopped();
                     });
    if (run.checkpoint.layer == 0) throw Cancelled();
    phase.note(fmt::format("pseudo rows enter after layer {} of {}", run.checkpoint.layer,
                           model.config().layers));
  }
  run.report.layer = run.checkpoint.layer;
}

/// What the teacher says of the texts.
struct Lessons {
  std::vector<TeacherText> train, held_out;
};

/// Of as many texts as the memory holds.
Lessons read_lessons(const Model& model, Engine& engine, const UpperLayers& upper,
                     TrainingRun& run) {
  Phase phase = run.begin(TrainPhase::kCapture);
  const std::vector<Text>& texts = run.checkpoint.texts;
  const auto limit =
      static_cast<std::size_t>(kMemoryShare * static_cast<double>(physical_memory_bytes()));
  const std::size_t token_bytes = teacher_bytes_per_token(model.config(), run.checkpoint.layer);
  long long total = 0, done = 0;
  std::size_t usable = 0;
  while (usable < texts.size() && total * token_bytes < limit) {
    total += std::ssize(texts[usable++].tokens);
  }
  if (usable < texts.size()) {
    phase.note(fmt::format("{} of {} texts fit into the memory", usable, texts.size()));
  }
  Lessons lessons;
  for (const Text& text : std::span(texts).first(usable)) {
    if (run.stopped()) throw Cancelled();
    (text.held_out ? lessons.held_out : lessons.train).push_back(run_teacher(engine, upper, text));
    done += std::ssize(text.tokens);
    phase.update(done, total);
  }
  if (run.stopped()) throw Cancelled();
  if (lessons.train.empty() || lessons.held_out.empty()) {
    throw Error("there is too little training text, or too little memory for it");
  }
  return lessons;
}

/// Medusa's blocks before any training: of zeros, whose rows are the final states themselves.
Maps medusa_maps(const UpperLayers& upper, const torch::Tensor& hidden, int draft_steps) {
  const torch::Tensor states = upper.normed(hidden).cpu();
  const std::int64_t steps = draft_steps, d = states.size(1);
  return {.layer = upper.first_layer(),
          .mean = states.mean(0),
          .deviation = states.std(0),
          .weight = torch::zeros({steps, d, d}),
          .bias = torch::zeros({steps, d}),
          .method = HeadsMethod::kMedusa};
}

Maps first_maps(const UpperLayers& upper, std::span<const TeacherText> texts,
                const TrainOptions& options) {
  std::vector<torch::Tensor> hidden;
  for (const TeacherText& text :
       texts.first(std::min<std::size_t>(texts.size(), kRidgeSampleTexts))) {
    hidden.push_back(text.hidden);
  }
  const torch::Tensor sample = torch::cat(hidden);
  if (options.method == HeadsMethod::kMedusa) {
    return medusa_maps(upper, sample, options.draft_steps);
  }
  RidgeRegression regression(
      upper.first_layer(), options.draft_steps, sample,
      options.token_input ? std::optional(upper.embedding_scale()) : std::nullopt);
  for (const TeacherText& text : texts) {
    regression.add(text.hidden,
                   upper.embeddings(tokens_behind(text.tokens, text.hidden.size(0))).cpu());
    if (regression.anchors() >= kRidgeAnchors) break;
  }
  return regression.solve();
}

/// Ridge regression, and a sequential head and adapters that change nothing yet.
Distillation::State warm_start(const UpperLayers& upper, std::span<const TeacherText> texts,
                               TrainingRun& run) {
  const TrainOptions& options = run.planned();
  Phase phase = run.begin(TrainPhase::kWarmStart);
  Maps maps = first_maps(upper, texts, options);
  phase.update(options.draft_steps, options.draft_steps);
  const std::int64_t d = upper.head().size(1);
  if (options.sequence_rank > 0) {
    const double state_scale = 1 / upper.output_norm().square().mean().sqrt().item<double>();
    maps.sequence = SequentialHeads::initial(options.draft_steps, options.sequence_rank, d,
                                             state_scale, upper.embedding_scale(), options.seed);
  }
  if (options.adapter_rank > 0) {
    maps.adapters = Adapters::initial(upper.layers(), options.adapter_rank, d, options.seed);
  }
  return Distillation::initial_state(std::move(maps));
}

/// The updates, with what is shown, logged and saved between them.
class Updates {
 public:
  Updates(const UpperLayers& upper, const Lessons& lessons, TrainingRun& run)
      : upper_(upper),
        quick_(std::span(lessons.held_out)
                   .first(std::min<std::size_t>(lessons.held_out.size(), kQuickTexts))),
        run_(run),
        minutes_before_(run.checkpoint.phase_minutes[static_cast<int>(TrainPhase::kDistillation)]),
        phase_(run.begin(TrainPhase::kDistillation)),
        distillation_(upper, lessons.train, *run.checkpoint.state, run.planned().learning_rate,
                      run.planned().seed),
        first_(done()) {
    if (run.planned().updates > 0) run.checkpoint.planned_updates = run.planned().updates;
  }

  /// Until all that are planned are done, or the training is stopped. The last quick figures.
  Evaluation run_all() {
    while (!run_.stopped() && !all_done()) {
      if (now_seconds() >= next_quick_) {
        const Stopwatch watch;
        evaluate_quickly();
        next_quick_ = now_seconds() + std::max(kQuickSeconds, watch.seconds() / kQuickShare);
      }
      update();
      plan();
      phase_.progress().loss = loss_;
      phase_.progress().rows_per_second = rows_an_update() * (done() - first_) / seconds_;
      phase_.update(done(), std::max(done() + 1, run_.checkpoint.planned_updates));
      if (since_save_.seconds() > kCheckpointSeconds) {
        run_.checkpoint.state = distillation_.state();
        run_.save(TrainPhase::kDistillation, phase_.elapsed());
        since_save_ = {};
      }
    }
    if (!run_.options().log.empty() && all_done()) evaluate_quickly();  // where the curve ends
    run_.checkpoint.state = distillation_.state();
    TrainReport& report = run_.report;
    report.stopped = !all_done();
    report.updates = done();
    report.planned_updates = run_.checkpoint.planned_updates;
    report.rows = static_cast<long long>(report.updates) * rows_an_update();
    if (!report.stopped) phase_.update(report.updates, report.updates);
    return last_quick_;
  }

 private:
  int done() const { return distillation_.state().updates; }
  bool all_done() const {
    return run_.checkpoint.planned_updates > 0 && done() >= run_.checkpoint.planned_updates;
  }
  int rows_an_update() const {
    return kSequencesAnUpdate * kAnchorsASequence * run_.planned().draft_steps;
  }

  void update() {
    const Stopwatch watch;
    const int planned = run_.checkpoint.planned_updates;
    loss_sum_ += distillation_.update(planned > 0 ? planned : INT_MAX);
    seconds_ += watch.seconds();
    if (++loss_count_ == kLossUpdates || done() == 1) {
      loss_ = loss_sum_ / loss_count_;
      loss_sum_ = 0;
      loss_count_ = 0;
    }
    if (!std::isfinite(loss_)) {
      throw Error("the training diverged; try a smaller learning rate");
    }
  }

  /// How many fit into --minutes, once their speed is known.
  void plan() {
    if (done() - first_ == kSpeedFirst) speed_begin_seconds_ = seconds_;
    int& planned = run_.checkpoint.planned_updates;
    if (planned > 0 || done() - first_ != kSpeedLast) return;
    const double update_seconds = (seconds_ - speed_begin_seconds_) / (kSpeedLast - kSpeedFirst);
    const double left =
        (run_.planned().minutes - minutes_before_) * 60 * (1 - kQuickShare) - seconds_;
    planned = done() + std::max(0, static_cast<int>(left / update_seconds));
  }

  void evaluate_quickly() {
    const Evaluation now = evaluate(upper_, distillation_.state().maps, quick_, hidden_of, {},
                                    [&](int) { return !run_.stopped(); });
    if (run_.stopped()) return;
    phase_.progress().evaluation = last_quick_ = now;
    if (run_.options().log.empty()) return;
    append_to_training_log(run_.options().log,
                           {.seconds = phase_.elapsed() + 60 * run_.minutes(),
                            .updates = done(),
                            .rows = static_cast<long long>(done()) * rows_an_update(),
                            .loss = loss_ > 0 ? loss_ : std::numeric_limits<double>::quiet_NaN(),
                            .top1 = now.top1,
                            .tokens_per_forward = now.best()});
  }

  const UpperLayers& upper_;
  const std::span<const TeacherText> quick_;
  TrainingRun& run_;
  const double minutes_before_;
  Phase phase_;
  Distillation distillation_;
  const int first_;  ///< updates that an earlier run has done
  double seconds_ = 0, speed_begin_seconds_ = 0, next_quick_ = 0;
  Stopwatch since_save_;
  double loss_ = 0, loss_sum_ = 0;
  int loss_count_ = 0;
  Evaluation last_quick_;
};

Evaluation evaluate_heads(const UpperLayers& upper, const Heads& heads,
                          std::span<const TeacherText> held_out, torch::Device device,
                          TrainingRun& run) {
  Phase phase = run.begin(TrainPhase::kEvaluation);
  return evaluate(upper, from_heads(heads).to(device), held_out, hidden_of, heads.draft_vocabulary,
                  [&](int done) {
                    phase.update(done, std::ssize(held_out));
                    return !run.stopped();
                  });
}

}  // namespace

TrainReport train_by_distillation(const Model& model, Engine& engine, TrainingRun run) try {
  at::set_num_threads(engine.options().threads);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  const torch::Device device = fast_device();
  choose_entry_layer(model, engine, run);
  const UpperLayers upper(model, run.checkpoint.layer, device, fast_type(device));
  const Lessons lessons = read_lessons(model, engine, upper, run);
  if (!run.checkpoint.state) run.checkpoint.state = warm_start(upper, lessons.train, run);
  Evaluation evaluation = Updates(upper, lessons, run).run_all();
  run.save();

  Heads heads = to_heads(run.checkpoint.state->maps, run.checkpoint.base);
  heads.draft_vocabulary = tokens_by_frequency(lessons.train, model.config().vocabulary_size);
  heads.draft_vocabulary.resize(std::min(heads.draft_vocabulary.size(), kDraftVocabulary));
  if (!run.report.stopped) {
    evaluation = evaluate_heads(upper, heads, lessons.held_out, device, run);
  }
  return run.end_with(std::move(heads), evaluation);
} catch (const Cancelled&) {
  return run.end_without_heads();
}

}  // namespace firp
