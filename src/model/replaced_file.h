#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

namespace firp {

/// A file that is written beside its target, as TARGET.tmp-PID, and takes its place when it is
/// whole: a full disk or Ctrl-C leaves neither half a file nor a lost one. It goes away if it is
/// not renamed; what a killed process left so is removed by the next one that writes there. Errors
/// name the target.
class ReplacedFile {
 public:
  explicit ReplacedFile(std::filesystem::path target);
  ~ReplacedFile();
  ReplacedFile(const ReplacedFile&) = delete;
  ReplacedFile& operator=(const ReplacedFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  /// Waits until the bytes are on the disk, and puts them in the target's place.
  void replace();

 private:
  [[noreturn]] void fail() const;

  std::filesystem::path target_;
  std::filesystem::path path_;
  int file_;
};

}  // namespace firp
