#pragma once

#include <atomic>

namespace firp {

/// Set by Ctrl-C, SIGTERM, and SIGHUP: the terminal is gone.
extern std::atomic<bool> interrupted;

/// From now on the first of these sets `interrupted` (cleared here) and interrupts system
/// calls; the next one ends the program.
void catch_interrupts();

}  // namespace firp
