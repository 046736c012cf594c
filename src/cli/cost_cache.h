#pragma once

#include <filesystem>

#include "draft/planner.h"
#include "engine/engine.h"

namespace firp {

/// What passes of this engine cost, measured once for a model file, heads file, processor,
/// instruction set and number of threads, and kept in $FIRP_CACHE/costs (default
/// ~/.cache/firp/costs): with a large model measuring takes seconds. The planner follows what it
/// sees later, so an old file does no harm. Where none can be kept, every start measures.
PassCosts cached_costs(Engine& engine, const std::filesystem::path& model,
                       const std::filesystem::path& heads);

}  // namespace firp
