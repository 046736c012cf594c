#include "bench/load_bench.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <functional>
#include <list>
#include <vector>

#include "base/error.h"
#include "bench/timing.h"
#include "engine/native_engine.h"
#include "engine/weights.h"
#include "kernels/packed_matrix.h"
#include "model/model.h"

namespace firp {
namespace {

double seconds_of(const std::function<void()>& work) {
  const Stopwatch watch;
  work();
  return watch.seconds();
}

class OpenFile {
 public:
  explicit OpenFile(const std::filesystem::path& path)
      : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) fail();
  }
  ~OpenFile() { close(descriptor_); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  /// Nobody may hold the file mapped meanwhile: the system keeps such pages.
  void drop_from_cache() const { posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED); }

  /// The number of bytes.
  std::size_t read_all() const {
    std::vector<char> buffer(std::size_t{1} << 20);
    lseek(descriptor_, 0, SEEK_SET);
    std::size_t bytes = 0;
    for (ssize_t count; (count = read(descriptor_, buffer.data(), buffer.size())) != 0;) {
      if (count < 0) fail();
      bytes += static_cast<std::size_t>(count);
    }
    return bytes;
  }

 private:
  [[noreturn]] void fail() const {
    throw Error(fmt::format("cannot read {}: {}", path_.string(), std::strerror(errno)));
  }

  const std::filesystem::path path_;
  const int descriptor_;
};

std::size_t packed_bytes(const Model& model) {
  std::size_t bytes = PackedMatrix::packed_bytes(model.head(), model.head().type);
  for (const LayerTensors& layer : model.layers()) {
    for (const Tensor* const* const matrix : layer.matrices()) {
      if (*matrix != nullptr) bytes += PackedMatrix::packed_bytes(**matrix, (*matrix)->type);
    }
  }
  return bytes;
}

void touch_memory(std::size_t bytes, ThreadPool& pool) {
  constexpr std::size_t kPage = 4096;
  AlignedBytes memory(bytes);
  pool.run([&](int thread) {
    const auto [begin, end] = share(static_cast<int>(bytes / kPage), thread, pool.size());
    for (int page = begin; page < end; ++page) memory.data()[page * kPage] = std::byte{1};
  });
}

}  // namespace

std::size_t peak_resident_bytes() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("VmHWM:")) return std::size_t{1024} * std::stoull(line.substr(6));
  }
  return 0;
}

LoadResult bench_load(const std::filesystem::path& model, ThreadPool& pool, bool packed_cache) {
  LoadResult result;
  std::list<OpenFile> files;
  {
    const Model opened(model);
    result.packed_bytes = packed_bytes(opened);
    for (const std::filesystem::path& path : opened.file().paths()) files.emplace_back(path);
  }
  const auto drop_from_cache = [&] {
    for (const OpenFile& file : files) file.drop_from_cache();
  };
  const auto load = [&] {
    const Model loaded(model);
    const NativeEngine engine(loaded, {.threads = pool.size(), .packed_cache = packed_cache});
  };
  const auto read = [&] {
    result.file_bytes = 0;
    for (const OpenFile& file : files) result.file_bytes += file.read_all();
  };

  result.memory_seconds = seconds_of([&] { touch_memory(result.packed_bytes, pool); });
  if (packed_cache) {
    load();
    if (const auto kept = packed_weights_path(Model(model))) OpenFile(*kept).drop_from_cache();
  }
  drop_from_cache();
  result.load_seconds.cold = seconds_of(load);
  result.load_seconds.warm = seconds_of(load);
  drop_from_cache();
  result.read_seconds.cold = seconds_of(read);
  result.read_seconds.warm = seconds_of(read);
  result.peak_resident_bytes = peak_resident_bytes();
  return result;
}

std::string load_table(const LoadResult& result) {
  const auto file = static_cast<double>(result.file_bytes);
  const auto packed = static_cast<double>(result.packed_bytes);
  const auto peak = static_cast<double>(result.peak_resident_bytes);
  std::string table = fmt::format("{:<6} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "file", "load s",
                                  "read s", "load/read", "load GB/s", "read GB/s");
  const auto line = [&](std::string_view state, double load, double read) {
    table += fmt::format("{:<6} {:>9.3f} {:>9.3f} {:>8.2f}x {:>9.2f} {:>9.2f}\n", state, load, read,
                         load / read, file / load / 1e9, file / read / 1e9);
  };
  line("cold", result.load_seconds.cold, result.read_seconds.cold);
  line("warm", result.load_seconds.warm, result.read_seconds.warm);
  table += fmt::format("the memory for it, when it was first asked for: {:.3f} s\n",
                       result.memory_seconds);
  return table + fmt::format(
                     "{:.1f} MB of file, {:.1f} MB packed; at most {:.1f} MB of memory while "
                     "loading: {:.2f}x of the packed\n",
                     file / 1e6, packed / 1e6, peak / 1e6, peak / packed);
}

nlohmann::ordered_json load_json(nlohmann::ordered_json machine, const LoadResult& result) {
  return {{"mode", "load"},
          {"machine", std::move(machine)},
          {"memory_seconds", result.memory_seconds},
          {"load_cold_seconds", result.load_seconds.cold},
          {"load_warm_seconds", result.load_seconds.warm},
          {"read_cold_seconds", result.read_seconds.cold},
          {"read_warm_seconds", result.read_seconds.warm},
          {"file_bytes", result.file_bytes},
          {"packed_bytes", result.packed_bytes},
          {"peak_resident_bytes", result.peak_resident_bytes}};
}

}  // namespace firp
