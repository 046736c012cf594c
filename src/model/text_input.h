#pragma once

#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

namespace firp {

/// Text that a user hands in: a file, or standard input. However much there is, no more is read
/// than the limits below: what passes them is an Error that names the limit.
class TextInput {
 public:
  static constexpr std::size_t kMostBytes = std::size_t{32} << 20;     ///< of a text, of a line
  static constexpr std::size_t kMostFileBytes = std::size_t{1} << 30;  ///< of a file's lines

  /// `what` names it in messages: "the prompt". An Error where the file cannot be opened.
  TextInput(std::string what, const std::filesystem::path& path);
  /// Standard input, whose lines have no limit together.
  static TextInput standard(std::string what);

  /// All of it.
  std::string text();
  /// The next line, without its line break, be it \n or \r\n. False at the end, and where a signal
  /// that the program handles interrupts the read.
  bool next_line(std::string& line);

 private:
  TextInput(std::string what, std::FILE* file);
  void require_readable();

  std::string what_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::size_t read_ = 0;
};

/// A prompt as its writer sees it, from the bytes of a file or a pipe: without the byte order mark,
/// with \n for line breaks, and without the last of them, which editors and `echo` add.
std::string prompt_of_bytes(std::string bytes);

}  // namespace firp
