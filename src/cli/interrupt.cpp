#include "cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

namespace firp {

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler may set it

void catch_interrupts(Patience patience) {
  interrupted = false;
  alarm(0);
  struct sigaction late = {};
  late.sa_handler = [](int) { _exit(kExitInterrupted); };
  sigaction(SIGALRM, &late, nullptr);
  struct sigaction action = {};
  if (patience == Patience::kASecond) {
    action.sa_handler = [](int) {
      interrupted = true;
      alarm(1);
    };
  } else {
    action.sa_handler = [](int) { interrupted = true; };
  }
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction hangup = {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // not under nohup
}

}  // namespace firp
