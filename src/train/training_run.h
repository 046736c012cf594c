#pragma once

#include <atomic>
#include <functional>

#include "train/checkpoint.h"
#include "train/phase.h"
#include "train/train.h"

namespace firp {

/// Tokens that pseudo rows may draft, at most; what it costs: docs/training.md.
inline constexpr std::size_t kDraftVocabulary = 24576;

/// A training that has its texts, on its way to the heads file: what both ways of training share.
class TrainingRun {
 public:
  using OnProgress = std::function<void(const TrainProgress&)>;

  /// `options`: of this call, for its files and its command; what the result depends on are the
  /// checkpoint's. `stop` outlives the run.
  TrainingRun(Checkpoint from, const TrainOptions& options, OnProgress on_progress,
              const std::atomic<bool>& stop);

  Checkpoint checkpoint;  ///< grows with each phase
  TrainReport report;

  const TrainOptions& planned() const { return checkpoint.options; }
  const TrainOptions& options() const { return options_; }
  bool stopped() const { return stop_; }
  double minutes() const;  ///< of the phases that have ended

  Phase begin(TrainPhase phase);
  void save() const;
  /// The same in the middle of a phase.
  void save(TrainPhase phase, double elapsed_seconds) const;

  /// The end of a training that was stopped before there were heads; --resume goes on.
  TrainReport end_without_heads();
  /// Writes the heads, with what is known of them. The checkpoint goes, unless report.stopped.
  TrainReport end_with(Heads heads, const Evaluation& evaluation);

 private:
  TrainOptions options_;
  OnProgress on_progress_;
  const std::atomic<bool>& stop_;
};

}  // namespace firp
