#include "engine/packed_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string_view>

#include "base/error.h"
#include "model/replaced_file.h"

namespace firp {
namespace {

/// Behind the bytes, so that they begin with a page.
std::string trailer(const PackedFile& file) {
  return fmt::format("\nfirp packed weights, layout {}: {}\n", kPackedLayout, file.key);
}

}  // namespace

std::optional<AlignedBytes> map_packed_file(const PackedFile& file, std::size_t bytes) {
  const int descriptor = open(file.path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return std::nullopt;
  const std::string expected = trailer(file);
  std::string found(expected.size(), '\0');
  struct stat status {};
  std::optional<AlignedBytes> mapped;
  if (fstat(descriptor, &status) == 0 &&
      static_cast<std::size_t>(status.st_size) == bytes + expected.size() &&
      pread(descriptor, found.data(), found.size(), static_cast<off_t>(bytes)) ==
          static_cast<ssize_t>(found.size()) &&
      found == expected) {
    mapped = AlignedBytes::map(descriptor, bytes);
  }
  close(descriptor);
  return mapped;
}

void write_packed_file(const PackedFile& file, std::span<const std::byte> bytes) {
  try {
    ReplacedFile replaced(file.path);
    replaced.write(bytes);
    replaced.write(trailer(file));
    replaced.replace();
  } catch (const Error& error) {
    throw Error(fmt::format("{} ({:.1f} GB of packed weights); start without --packed-cache",
                            error.what(), static_cast<double>(bytes.size()) / 1e9));
  }
}

}  // namespace firp
