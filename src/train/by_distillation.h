#pragma once

#include "engine/engine.h"
#include "train/training_run.h"

namespace firp {

/// What train() does, once it has texts, for a model whose layers LibTorch knows: layer scan,
/// capture, warm start, distillation, evaluation; from the checkpoint's point on. No vocabulary is
/// needed.
TrainReport train_by_distillation(const Model& model, Engine& engine, TrainingRun run);

}  // namespace firp
