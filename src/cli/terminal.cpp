#include "cli/terminal.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "model/message.h"
#include "model/vocabulary.h"

namespace firp {

bool use_colour(const std::string& when) {
  if (when != "auto") return when == "always";
  const char* no_colour = std::getenv("NO_COLOR");
  const char* terminal = std::getenv("TERM");
  return isatty(STDOUT_FILENO) && (no_colour == nullptr || *no_colour == '\0') &&
         terminal != nullptr && std::strcmp(terminal, "dumb") != 0;
}

int terminal_columns() {
  winsize size = {};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 100;
}

std::string duration(double seconds) {
  const auto whole = static_cast<long long>(seconds + 0.5);
  if (whole >= 3600) {
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

void flush_output() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
    // A reader that has gone ends us without a word, where --rpc has the signal ignored, too.
    if (errno == EPIPE) {
      signal(SIGPIPE, SIG_DFL);
      raise(SIGPIPE);
    }
    throw Error(fmt::format("cannot write the output: {}", std::strerror(errno)));
  }
}

void TextPrinter::print(std::string_view bytes, bool drafted) {
  held_ += bytes;
  const std::size_t whole = held_.size() - unfinished_utf8(held_);
  if (whole == 0) return;
  last_ = held_[whole - 1];
  const bool coloured = colour_ && drafted;
  if (coloured) std::fputs(kDraftedColour, stdout);
  std::fwrite(held_.data(), 1, whole, stdout);
  if (coloured) std::fputs(kPlainColour, stdout);
  held_.erase(0, whole);
  flush_output();
}

void TextPrinter::finish() {
  held_.clear();
  if (last_ != '\n') std::fputc('\n', stdout);
  last_ = '\n';
  flush_output();
}

namespace {
constexpr auto kLineInterval = std::chrono::seconds(30);
}

StatusLine::StatusLine()
    : terminal_(isatty(STDERR_FILENO) != 0),
      next_(std::chrono::steady_clock::now() + kLineInterval) {}

void StatusLine::show(std::string_view text) {
  if (terminal_) {
    winsize size = {};
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    // A line that wraps could not be rewritten.
    say("\r\x1b[K{}", text.substr(0, known ? size.ws_col - 1 : 79));
    std::fflush(stderr);
    shown_ = true;
  } else if (std::chrono::steady_clock::now() >= next_) {
    say("{}\n", text);
    next_ = std::chrono::steady_clock::now() + kLineInterval;
  }
}

void StatusLine::keep(std::string_view text) {
  clear();
  say("{}\n", text);
}

void StatusLine::clear() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
  shown_ = false;
}

}  // namespace firp
