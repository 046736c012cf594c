#pragma once

#include <atomic>
#include <functional>

#include "engine/engine.h"
#include "train/checkpoint.h"
#include "train/train.h"

namespace firp {

/// Tokens that pseudo rows may draft, at most; what it costs: docs/training.md.
inline constexpr std::size_t kDraftVocabulary = 24576;

/// What a heads file says of its training.
TrainingRecord training_record(const TrainReport& report, const TrainOptions& options);

/// What train() does once it has texts: from a checkpoint's point on (layer scan, capture, warm
/// start, distillation, evaluation) to the heads file. Needs no vocabulary.
TrainReport train_on_texts(const Model& model, Engine& engine, Checkpoint checkpoint,
                           const TrainOptions& options,
                           const std::function<void(const TrainProgress&)>& on_progress,
                           const std::atomic<bool>& stop);

}  // namespace firp
