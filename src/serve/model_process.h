#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace firp {

/// `firp serve` of one model in a process of its own. It ends with this object, and however this
/// process ends.
class ModelProcess {
 public:
  /// What a thread of this object's own calls; the last call is on_end.
  struct Listener {
    /// It listens at this port of 127.0.0.1: the model is loaded.
    std::function<void(int port)> on_ready;
    /// A line of its standard error.
    std::function<void(const std::string& line)> on_line;
    /// It ended: its exit status, or 128 and the signal that ended it; and the last line.
    std::function<void(int exit_code, const std::string& last_line)> on_end;
  };

  /// `arguments` begin with the program. The process writes its port to standard output.
  ModelProcess(std::vector<std::string> arguments, std::vector<std::string> environment,
               Listener listener);
  /// Ends the process, and returns when it has ended.
  ~ModelProcess();
  ModelProcess(const ModelProcess&) = delete;
  ModelProcess& operator=(const ModelProcess&) = delete;

  /// Asks it to end, and makes it after kGrace. Returns at once.
  void end();

 private:
  static constexpr std::chrono::milliseconds kGrace{700};
  using Clock = std::chrono::steady_clock;

  void run();
  void start(int output, int errors);
  void listen(int output, int errors, std::string& last_line);

  const std::vector<std::string> arguments_, environment_;
  const Listener listener_;
  std::mutex mutex_;
  pid_t process_ = -1;                         ///< while it runs, or has not been waited for
  std::optional<Clock::time_point> deadline_;  ///< it was asked to end, and then is made to
  std::thread thread_;
};

}  // namespace firp
