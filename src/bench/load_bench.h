#pragma once

#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "engine/thread_pool.h"

namespace firp {

/// Seconds with the file's pages dropped from the system's cache before, and with all of them
/// there.
struct ColdAndWarm {
  double cold = 0;
  double warm = 0;
};

/// What it takes until a model is ready to run, beside what reading its file takes, and what the
/// system takes to hand out the memory. The loads have that in hand, from a process that has just
/// given it back: a virtual machine may have to ask its host for it, at a second for a gigabyte.
struct LoadResult {
  double memory_seconds = 0;  ///< first touch of packed_bytes in huge pages, by all threads
  ColdAndWarm load_seconds;   ///< opening, checking and packing
  ColdAndWarm read_seconds;   ///< read(), front to back, into a buffer
  std::size_t file_bytes = 0;
  std::size_t packed_bytes = 0;
  /// The most memory that the process held during a load (VmHWM): with its own, the part of the
  /// mapped file that it held.
  std::size_t peak_resident_bytes = 0;
};

/// `packed_cache`: of loads from packed weights that an earlier start has kept; "cold" is then also
/// without those in the system's cache.
LoadResult bench_load(const std::filesystem::path& model, ThreadPool& pool, bool packed_cache);

std::string load_table(const LoadResult& result);
nlohmann::ordered_json load_json(nlohmann::ordered_json machine, const LoadResult& result);

/// The most memory that this process has held (VmHWM); 0 where the system does not tell.
std::size_t peak_resident_bytes();

}  // namespace firp
