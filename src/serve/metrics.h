#pragma once

#include <string>

#include "serve/scheduler.h"

namespace firp {

/// For Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats), by llama-server's
/// names where it has them. `before`: status.all as it was told last: rates are of what came since.
std::string metrics_of(const Scheduler::Status& status, const Usage& before);

/// llama-server's list of slots, without the texts.
Json slots_of(const Scheduler::Status& status, int context);

}  // namespace firp
