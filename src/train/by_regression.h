#pragma once

#include "engine/engine.h"
#include "train/training_run.h"

namespace firp {

/// What train() does, once it has texts, for a model whose layers LibTorch does not know: maps by
/// ridge regression of hidden states, then a sequential head from the final states that the maps'
/// rows have in the engine. No gradient goes through the model. Without adapters.
///
/// --resume begins after the texts.
TrainReport train_by_regression(const GgufFile& model, Engine& engine, TrainingRun run);

}  // namespace firp
