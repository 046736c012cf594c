#include "train/training_run.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace firp {

TrainingRun::TrainingRun(Checkpoint from, const TrainOptions& options, OnProgress on_progress,
                         const std::atomic<bool>& stop)
    : checkpoint(std::move(from)),
      options_(options),
      on_progress_(std::move(on_progress)),
      stop_(stop) {
  report.layer = checkpoint.layer;
  report.texts = std::ssize(checkpoint.texts);
  for (const Text& text : checkpoint.texts) {
    report.held_out_texts += text.held_out;
    report.answer_tokens += text.answer_tokens();
  }
}

double TrainingRun::minutes() const {
  return std::accumulate(std::begin(checkpoint.phase_minutes), std::end(checkpoint.phase_minutes),
                         0.0);
}

Phase TrainingRun::begin(TrainPhase phase) {
  return Phase(phase, &checkpoint.phase_minutes[static_cast<int>(phase)], on_progress_);
}

void TrainingRun::save() const { write_checkpoint(checkpoint, checkpoint_path(options_)); }

void TrainingRun::save(TrainPhase phase, double elapsed_seconds) const {
  Checkpoint with_time = checkpoint;
  with_time.phase_minutes[static_cast<int>(phase)] += elapsed_seconds / 60;
  write_checkpoint(with_time, checkpoint_path(options_));
}

TrainReport TrainingRun::end_without_heads() {
  save();
  report.stopped = true;
  std::ranges::copy(checkpoint.phase_minutes, report.phase_minutes);
  return report;
}

TrainReport TrainingRun::end_with(Heads heads, const Evaluation& evaluation) {
  report.evaluation = evaluation;
  std::ranges::copy(checkpoint.phase_minutes, report.phase_minutes);
  heads.training = {.command = options_.command,
                    .minutes = minutes(),
                    .rows = report.rows,
                    .top1 = evaluation.top1,
                    .top5 = evaluation.top5,
                    .sequence_top1 = evaluation.sequence_top1,
                    .tokens_per_forward_chain = evaluation.best().chain,
                    .tokens_per_forward_tree32 = evaluation.best().tree32};
  write_heads(heads, options_.output);
  report.heads_written = true;
  if (!report.stopped) {
    std::error_code ignored;
    std::filesystem::remove(checkpoint_path(options_), ignored);
  }
  return report;
}

}  // namespace firp
