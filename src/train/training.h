#pragma once

#include <atomic>
#include <functional>

#include "engine/engine.h"
#include "train/checkpoint.h"
#include "train/train.h"

namespace firp {

/// What train() does once it has texts: from a checkpoint's point on (layer scan, capture, warm
/// start, distillation, evaluation) to the heads file. Needs no vocabulary.
TrainReport train_on_texts(const Model& model, Engine& engine, Checkpoint checkpoint,
                           const TrainOptions& options,
                           const std::function<void(const TrainProgress&)>& on_progress,
                           const std::atomic<bool>& stop);

}  // namespace firp
