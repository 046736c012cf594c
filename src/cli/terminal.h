#pragma once

#include <chrono>
#include <cstdio>
#include <string>
#include <string_view>

namespace firp {

/// Whether standard output gets colours, by --colour: "always", "never", or "auto": on a terminal,
/// unless NO_COLOR is set (https://no-color.org).
bool use_colour(const std::string& when);
inline constexpr const char* kDraftedColour = "\x1b[32m";
inline constexpr const char* kPlainColour = "\x1b[0m";

/// Columns of the terminal behind standard output; 100 where there is none.
int terminal_columns();

/// "1:02:03" or "2:03".
std::string duration(double seconds);

/// Flushes standard output. An Error where the text could not be written (a full disk).
void flush_output();

/// Writes text to standard output as it is decoded: whole UTF-8 characters only (a token may end
/// inside one), drafted tokens in colour if asked for.
class TextPrinter {
 public:
  explicit TextPrinter(bool colour) : colour_(colour) {}

  void print(std::string_view bytes, bool drafted);
  /// Ends the text, with a line break unless there is one. Of a character that it was cut in,
  /// nothing is written.
  void finish();

 private:
  const bool colour_;
  std::string held_;
  char last_ = '\n';
};

/// A line about work under way, on standard error: on a terminal one line that is rewritten,
/// elsewhere a new one every half a minute.
class StatusLine {
 public:
  StatusLine();
  ~StatusLine() { clear(); }

  void show(std::string_view text);
  /// A line that stays.
  void keep(std::string_view text);
  void clear();

 private:
  const bool terminal_;
  bool shown_ = false;
  std::chrono::steady_clock::time_point next_;
};

}  // namespace firp
