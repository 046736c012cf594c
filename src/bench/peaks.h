#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "engine/thread_pool.h"
#include "kernels/packed_matrix.h"

namespace firp {

/// What some threads of this machine can do at most, measured: what our times are held against.
struct MachinePeaks {
  int threads = 0;
  double bytes_per_second = 0;  ///< read from memory, far beyond the caches
  /// Multiply-adds a second by the best instructions of one instruction set, from registers.
  double int8_per_second = 0;  ///< unsigned 8-bit codes x signed 8-bit activations, 32-bit sums
  double f32_per_second = 0;
  double bf16_per_second = 0;    ///< BF16 dot products or tiles; 0: none in this instruction set
  std::string instruction;       ///< of int8_per_second: "vpdpbusd zmm", ...
  int instructions_per_dot = 1;  ///< instructions that one 8-bit dot takes (2 without VNNI)

  double balance() const { return int8_per_second / bytes_per_second; }  ///< multiply-adds a byte
};

/// Measures on all threads of the pool at once; takes about half a second and 256 MiB or more.
/// `isa`: the instruction set whose peaks are asked for, by the name that Kernels gives it; for one
/// that is not known here, the best of the machine.
MachinePeaks measure_peaks(ThreadPool& pool, std::string_view isa);

/// Reads from memory, far beyond the caches, with all threads of a pool at once.
class MemoryReader {
 public:
  explicit MemoryReader(ThreadPool& pool);
  /// Of one run of some milliseconds. What the machine can do is the best of several; how much that
  /// is may depend on its neighbours, so it is measured beside what it is compared with.
  double bytes_per_second();

 private:
  ThreadPool& pool_;
  std::vector<AlignedBytes> memory_;  // a part for each thread
};

/// Memory that must be read in turn, at least, for each read to come from memory: more than 4 times
/// the last-level cache.
std::size_t out_of_cache_bytes();

/// The machine's part of a benchmark's JSON.
nlohmann::ordered_json machine_json(const MachinePeaks& peaks, std::string_view isa);

}  // namespace firp
