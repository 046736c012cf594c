#include "model/cut_file.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace firp {
namespace {

// What a signal handler may call is little: no memory, no streams.

void write_error(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
    if (written <= 0) return;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

/// The number at the front of `text`, in base 16, taken off it.
std::uintptr_t take_hexadecimal(std::string_view& text) {
  std::uintptr_t value = 0;
  for (; !text.empty(); text.remove_prefix(1)) {
    const char digit = text.front();
    if (digit >= '0' && digit <= '9') {
      value = value * 16 + static_cast<std::uintptr_t>(digit - '0');
    } else if (digit >= 'a' && digit <= 'f') {
      value = value * 16 + static_cast<std::uintptr_t>(digit - 'a' + 10);
    } else {
      break;
    }
  }
  return value;
}

/// The file of a line of /proc/self/maps, "7f01-7f02 r--p 00000000 08:01 42   /a/file", if the
/// address is within it.
std::string_view file_at(std::string_view line, std::uintptr_t address) {
  const std::uintptr_t begin = take_hexadecimal(line);
  if (line.empty()) return {};
  line.remove_prefix(1);
  const std::uintptr_t end = take_hexadecimal(line);
  const std::size_t path = line.find('/');
  if (address < begin || address >= end || path == std::string_view::npos) return {};
  return line.substr(path);
}

void on_bus_error(int signal, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  char buffer[8192];
  std::size_t held = 0;
  ssize_t more = 0;
  while (maps >= 0 && (more = read(maps, buffer + held, sizeof buffer - held)) > 0) {
    held += static_cast<std::size_t>(more);
    std::string_view text(buffer, held);
    for (std::size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n')) {
      if (const std::string_view file = file_at(text.substr(0, end), address); !file.empty()) {
        write_error("firp: ");
        write_error(file);
        write_error(
            " was cut or overwritten while it was in use, or cannot be read any more; start again "
            "when it is whole (a new file should be written beside it and renamed)\n");
        _exit(1);
      }
      text.remove_prefix(end + 1);
    }
    held = text.size() < sizeof buffer ? text.size() : 0;  // no line is that long
    for (std::size_t i = 0; i < held; ++i) buffer[i] = text[i];
  }
  ::signal(signal, SIG_DFL);  // of no file: the instruction runs again, and ends us
}

}  // namespace

void name_cut_files() {
  struct sigaction action = {};
  action.sa_sigaction = &on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace firp
