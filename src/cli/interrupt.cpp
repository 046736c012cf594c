#include "cli/interrupt.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace firp {

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);  // a signal handler may set it

namespace {

// A byte for each caught signal. A flag alone would miss one that comes between a look at it and a
// call that waits; and any thread may be the one that the signal interrupts.
struct Wakeups {
  int read = -1, write = -1;
  Wakeups() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return;  // then only EINTR ends a wait
    read = ends[0];
    write = ends[1];
  }
};
const Wakeups wakeups;

void note_interrupt() {
  const int before = errno;  // what the signal interrupts may be about to look at it
  interrupted = true;
  [[maybe_unused]] const ssize_t written = ::write(wakeups.write, "", 1);
  errno = before;
}

}  // namespace

void catch_interrupts(Patience patience) {
  interrupted = false;
  for (char byte; ::read(wakeups.read, &byte, 1) == 1;) {
  }
  alarm(0);
  struct sigaction late = {};
  late.sa_handler = [](int) { _exit(kExitInterrupted); };
  sigaction(SIGALRM, &late, nullptr);
  struct sigaction action = {};
  if (patience == Patience::kASecond) {
    action.sa_handler = [](int) {
      note_interrupt();
      alarm(1);
    };
  } else {
    action.sa_handler = [](int) { note_interrupt(); };
  }
  action.sa_flags = SA_RESETHAND;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction hangup = {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // not under nohup
}

bool wait_for_input(int file) {
  std::array<pollfd, 2> awaited = {{{file, POLLIN, 0}, {wakeups.read, POLLIN, 0}}};
  while (!interrupted && poll(awaited.data(), awaited.size(), -1) < 0) {
  }
  return !interrupted && awaited[1].revents == 0;
}

}  // namespace firp
