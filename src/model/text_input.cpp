#include "model/text_input.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace firp {
namespace {

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

std::string mebibytes(std::size_t bytes) { return fmt::format("{} MiB", bytes >> 20); }

}  // namespace

TextInput::TextInput(std::string what, const std::filesystem::path& path)
    : what_(fmt::format("{} {}", what, path.string())),
      file_(std::fopen(path.c_str(), "rb"), &std::fclose) {
  if (!file_) throw Error(fmt::format("cannot read {}: {}", what_, std::strerror(errno)));
}

TextInput::TextInput(std::string what, std::FILE* file)
    : what_(std::move(what)), file_(file, [](std::FILE*) { return 0; }) {}

TextInput TextInput::standard(std::string what) { return {std::move(what), stdin}; }

void TextInput::require_readable() {
  if (std::ferror(file_.get())) {
    throw Error(fmt::format("cannot read {}: {}", what_, std::strerror(errno)));
  }
}

std::string TextInput::text() {
  std::string text;
  char part[1 << 16];
  std::size_t count;
  while ((count = std::fread(part, 1, sizeof part, file_.get())) > 0) {
    text.append(part, count);
    if (text.size() > kMostBytes) {
      throw Error(fmt::format("{} is longer than {}", what_, mebibytes(kMostBytes)));
    }
  }
  require_readable();
  return text;
}

bool TextInput::next_line(std::string& line) {
  line.clear();
  int byte;
  while ((byte = std::getc(file_.get())) != EOF && byte != '\n') {
    line += static_cast<char>(byte);
    if (line.size() > kMostBytes) {
      throw Error(fmt::format("{} has a line of more than {}", what_, mebibytes(kMostBytes)));
    }
  }
  if (byte == EOF && std::ferror(file_.get()) && errno == EINTR) {
    std::clearerr(file_.get());
    return false;
  }
  require_readable();
  if (byte == EOF && line.empty()) return false;
  read_ += line.size() + 1;
  if (file_.get() != stdin && read_ > kMostFileBytes) {
    throw Error(fmt::format("{} is longer than {}", what_, mebibytes(kMostFileBytes)));
  }
  if (line.ends_with('\r')) line.pop_back();
  return true;
}

std::string prompt_of_bytes(std::string bytes) {
  std::size_t kept = 0;
  for (std::size_t i = bytes.starts_with(kByteOrderMark) ? kByteOrderMark.size() : 0;
       i < bytes.size(); ++i) {
    const bool before_line_feed = i + 1 < bytes.size() && bytes[i + 1] == '\n';
    if (bytes[i] != '\r' || !before_line_feed) bytes[kept++] = bytes[i];
  }
  bytes.resize(kept);
  if (bytes.ends_with('\n')) bytes.pop_back();
  return bytes;
}

}  // namespace firp
