#pragma once

#include "engine/engine.h"

namespace firp {

/// Twice how far the logits of rows in passes of many rows are from those of the same rows in
/// passes of one, at most, over some tokens of the model's own text: the DecodeOptions::tie_margin
/// of an engine whose kernels add in another order for other batches. 0 where they do not.
float measure_tie_margin(Engine& engine);

}  // namespace firp
