#pragma once

#include <atomic>
#include <functional>

#include "engine/engine.h"
#include "train/checkpoint.h"

namespace firp {

/// What train() does, once it has texts, for a model whose layers LibTorch does not know: maps by
/// ridge regression of hidden states, then a sequential head from the final states that the maps'
/// rows have in the engine. No gradient goes through the model. Without adapters.
///
/// `checkpoint` holds the texts; --resume begins behind them.
TrainReport train_by_regression(const GgufFile& model, Engine& engine, Checkpoint checkpoint,
                                const TrainOptions& options,
                                const std::function<void(const TrainProgress&)>& on_progress,
                                const std::atomic<bool>& stop);

}  // namespace firp
