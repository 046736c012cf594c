#pragma once

#include <filesystem>
#include <string>

#include "engine/engine.h"
#include "engine/llama_engine.h"
#include "plan/costs.h"

namespace firp {

/// What passes of this engine cost, measured once for a model file, heads file, processor,
/// instruction set and number of threads, and kept in $FIRP_CACHE/costs (default
/// ~/.cache/firp/costs): with a large model measuring takes seconds. The planner follows what it
/// sees later, so an old file does no harm. Where none can be kept, every start measures.
PassCosts cached_costs(Engine& engine, const std::filesystem::path& model,
                       const std::filesystem::path& heads);

/// measure_tie_margin() of an engine on this machine's CPU, kept in $FIRP_CACHE/ties as long as
/// nothing changes that it depends on, libllama's own files among that. With `llama`, what the
/// engine was made with, saying that something else computes, it is measured at every start.
float cached_tie_margin(Engine& engine, const std::filesystem::path& model,
                        const LlamaOptions& llama, const std::string& flash_attention);

}  // namespace firp
