#pragma once

#include <atomic>

namespace firp {

/// Set by Ctrl-C and SIGTERM.
extern std::atomic<bool> interrupted;

/// From now on the first Ctrl-C or SIGTERM sets `interrupted` (cleared here) and interrupts system
/// calls; the next one ends the program.
void catch_interrupts();

}  // namespace firp
