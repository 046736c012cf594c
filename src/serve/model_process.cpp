#include "serve/model_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace firp {
namespace {

/// Both ends of a pipe, closed when they are no longer needed.
struct Pipe {
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) != 0) {
      throw Error(fmt::format("cannot start another process: {}", std::strerror(errno)));
    }
  }
  ~Pipe() {
    close(ends[0]);
    close_writer();
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  void close_writer() {
    if (ends[1] >= 0) close(std::exchange(ends[1], -1));
  }
  int reader() const { return ends[0]; }
  int writer() const { return ends[1]; }

  int ends[2] = {-1, -1};
};

std::vector<char*> pointers_to(const std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (const std::string& each : texts) pointers.push_back(const_cast<char*>(each.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

/// What a pipe brings, line by line.
class Lines {
 public:
  explicit Lines(std::function<void(const std::string&)> on_line) : on_line_(std::move(on_line)) {}

  /// False once the other side is closed.
  bool read_from(int file) {
    std::array<char, 4096> bytes;
    const ssize_t count = ::read(file, bytes.data(), bytes.size());
    if (count < 0) return errno == EINTR;
    for (const char c : std::string_view(bytes.data(), static_cast<std::size_t>(count))) {
      if (c == '\n' || c == '\r' || line_.size() == kLongest) end_line();
      if (c != '\n' && c != '\r') line_ += c;
    }
    if (count == 0) end_line();
    return count > 0;
  }

 private:
  static constexpr std::size_t kLongest = 4096;

  void end_line() {
    if (!line_.empty()) on_line_(std::exchange(line_, {}));
  }

  const std::function<void(const std::string&)> on_line_;
  std::string line_;
};

}  // namespace

ModelProcess::ModelProcess(std::vector<std::string> arguments, std::vector<std::string> environment,
                           Listener listener)
    : arguments_(std::move(arguments)),
      environment_(std::move(environment)),
      listener_(std::move(listener)),
      thread_([this] { run(); }) {}

ModelProcess::~ModelProcess() {
  end();
  thread_.join();
}

void ModelProcess::end() {
  const std::lock_guard lock(mutex_);
  if (!deadline_) deadline_ = Clock::now() + kGrace;
  if (process_ > 0) kill(process_, SIGTERM);
}

void ModelProcess::run() {
  int status = 0;
  std::string last_line;
  try {
    Pipe output, errors;
    {
      const std::lock_guard lock(mutex_);
      if (deadline_) throw Error("it was ended before it began");
      start(output.writer(), errors.writer());
    }
    output.close_writer();
    errors.close_writer();
    listen(output.reader(), errors.reader(), last_line);
    // Until it is waited for, its number is no other process's.
    siginfo_t info = {};
    while (waitid(P_PID, static_cast<id_t>(process_), &info, WEXITED | WNOWAIT) != 0 &&
           errno == EINTR) {
    }
    const std::lock_guard lock(mutex_);
    waitpid(std::exchange(process_, -1), &status, 0);
  } catch (const Error& error) {
    return listener_.on_end(1, error.what());
  }
  listener_.on_end(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), last_line);
}

/// In run()'s thread: the system ends the process when the thread that began it ends.
void ModelProcess::start(int output, int errors) {
  const std::vector<char*> arguments = pointers_to(arguments_);
  const std::vector<char*> environment = pointers_to(environment_);
  const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
  const pid_t parent = getpid();
  process_ = fork();
  if (process_ == 0) {
    // Other threads may hold locks, of memory, too: system calls only.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    dup2(nothing, STDIN_FILENO);
    dup2(output, STDOUT_FILENO);
    dup2(errors, STDERR_FILENO);
    execve("/proc/self/exe", arguments.data(), environment.data());
    constexpr std::string_view kProblem = "firp: cannot start itself\n";
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kProblem.data(), kProblem.size());
    _exit(127);
  }
  if (nothing >= 0) close(nothing);
  if (process_ < 0) throw Error(fmt::format("cannot start a process: {}", std::strerror(errno)));
}

/// Until the process has closed both.
void ModelProcess::listen(int output, int errors, std::string& last_line) {
  constexpr int kGlanceMilliseconds = 100;
  Lines ports([this](const std::string& line) {
    int port = 0;
    std::from_chars(line.data(), line.data() + line.size(), port);
    if (port > 0) listener_.on_ready(port);
  });
  Lines messages([&](const std::string& line) {
    last_line = line;
    listener_.on_line(line);
  });
  std::array<pollfd, 2> files = {{{output, POLLIN, 0}, {errors, POLLIN, 0}}};
  while (files[0].fd >= 0 || files[1].fd >= 0) {
    const int count = poll(files.data(), files.size(), kGlanceMilliseconds);
    if (count > 0 && files[0].revents != 0 && !ports.read_from(output)) files[0].fd = -1;
    if (count > 0 && files[1].revents != 0 && !messages.read_from(errors)) files[1].fd = -1;
    const std::lock_guard lock(mutex_);
    if (deadline_ && Clock::now() > *deadline_) kill(process_, SIGKILL);
  }
}

}  // namespace firp
