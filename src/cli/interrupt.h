#pragma once

#include <atomic>

namespace firp {

inline constexpr int kExitInterrupted = 130;  ///< as shells have it for Ctrl-C

/// Set by Ctrl-C, SIGTERM, and SIGHUP: the terminal is gone.
extern std::atomic<bool> interrupted;

/// How long the program may take to end after a signal, whatever holds it (a terminal that is
/// stopped, a pipe that nobody reads): a second, or as long as it takes to keep what was done.
enum class Patience { kASecond, kUntilItIsKept };

/// From now on the first of these sets `interrupted` (cleared here) and interrupts system
/// calls; the next one ends the program.
void catch_interrupts(Patience patience = Patience::kASecond);

/// Waits until `file` can be read without waiting, or has ended. False where a caught signal comes
/// first, or has come since catch_interrupts().
bool wait_for_input(int file);

}  // namespace firp
