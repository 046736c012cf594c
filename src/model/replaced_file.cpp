#include "model/replaced_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "model/error.h"

namespace firp {

ReplacedFile::ReplacedFile(std::filesystem::path target)
    : target_(std::move(target)),
      path_(fmt::format("{}.tmp-{}", target_.string(), getpid())),
      file_(open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666)) {
  if (file_ < 0) fail();
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
