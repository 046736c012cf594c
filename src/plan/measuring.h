#pragma once

#include "engine/engine.h"
#include "plan/costs.h"

namespace firp {

/// Measures what passes of the engine cost: some tens of forward passes, in a sequence of its own.
PassCosts measure_costs(Engine& engine);

}  // namespace firp
