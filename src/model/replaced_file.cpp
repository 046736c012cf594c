#include "model/replaced_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace firp {
namespace {

constexpr std::string_view kBeforeThePid = ".tmp-";

/// What a process that was killed left beside `target`: it may be as large as a model.
void remove_leftovers(const std::filesystem::path& target) {
  const std::string begin = target.filename().string() + std::string(kBeforeThePid);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(
           target.has_parent_path() ? target.parent_path() : ".", error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(begin)) continue;
    pid_t process = 0;
    const char* const last = name.data() + name.size();
    const auto [end, problem] = std::from_chars(name.data() + begin.size(), last, process);
    if (problem != std::errc() || end != last || process <= 0) continue;
    // In another container, which has its own numbers, it may yet be at work.
    const auto age = std::filesystem::file_time_type::clock::now() - entry.last_write_time(error);
    if (error || age < std::chrono::hours(1)) continue;
    if (kill(process, 0) != 0 && errno == ESRCH) std::filesystem::remove(entry.path(), error);
  }
}

}  // namespace

ReplacedFile::ReplacedFile(std::filesystem::path target)
    : target_(std::move(target)),
      path_(fmt::format("{}{}{}", target_.string(), kBeforeThePid, getpid())),
      file_(open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666)) {
  if (file_ < 0) fail();
  remove_leftovers(target_);
}

ReplacedFile::~ReplacedFile() {
  if (file_ < 0) return;
  close(file_);
  unlink(path_.c_str());
}

void ReplacedFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail();
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void ReplacedFile::replace() {
  if (fsync(file_) != 0 || rename(path_.c_str(), target_.c_str()) != 0) fail();
  close(file_);
  file_ = -1;
}

void ReplacedFile::fail() const {
  throw Error(fmt::format("cannot write {}: {}", target_.string(), std::strerror(errno)));
}

}  // namespace firp
