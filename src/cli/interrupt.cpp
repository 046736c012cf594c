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

// A pipe that gets a byte for each caught signal. A flag alone would miss one that comes between a
// look at it and a call that waits; and any thread may be the one that the signal interrupts.
// Opened by the first catch_interrupts(): a closed standard output has been replaced by then.
int wakeups_read = -1, wakeups_write = -1;

void open_wakeups() {
  int ends[2];
  if (wakeups_read >= 0 || pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return;
  wakeups_read = ends[0];
  wakeups_write = ends[1];
}

void note_interrupt() {
  const int before = errno;  // what the signal interrupts may be about to look at it
  interrupted = true;
  [[maybe_unused]] const ssize_t written = ::write(wakeups_write, "", 1);
  errno = before;
}

}  // namespace

void catch_interrupts(Patience patience) {
  open_wakeups();
  interrupted = false;
  for (char byte; ::read(wakeups_read, &byte, 1) == 1;) {
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
  std::array<pollfd, 2> awaited = {{{file, POLLIN, 0}, {wakeups_read, POLLIN, 0}}};
  while (!interrupted && poll(awaited.data(), awaited.size(), -1) < 0) {
  }
  return !interrupted && awaited[1].revents == 0;
}

}  // namespace firp
