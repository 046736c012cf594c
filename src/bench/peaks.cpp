#include "bench/peaks.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "bench/report.h"
#include "bench/timing.h"
#include "kernels/amx_shapes.h"
#include "kernels/kernels.h"
#include "model/last_level_cache.h"
#include "model/usable_cores.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace firp {
namespace {

constexpr int kChains = 16;     // sums at work at a time: more than latency x units on any CPU
constexpr int kSteps = 40'000;  // of every chain in one call: some milliseconds at most
constexpr int kRuns = 7;

/// Keeps a value that is never looked at from being left out.
template <typename T>
inline void keep(const T& value) {
  asm volatile("" : : "m"(value) : "memory");
}

/// Hides what a value is: chains that are known to be equal would become one.
template <typename T>
inline void hide(T& value) {
  asm volatile("" : "+m"(value));
}

// Each function does kSteps x kChains operations from registers and returns its multiply-adds.

[[gnu::noinline]] double int8_portable() {
  constexpr int kWidth = 64;
  std::int32_t sums[kWidth] = {};
  std::uint8_t codes[kWidth];
  std::int8_t values[kWidth];
  std::fill_n(codes, kWidth, std::uint8_t{3});
  std::fill_n(values, kWidth, std::int8_t{5});
  for (int step = 0; step < kSteps; ++step) {
    keep(codes);
    for (int i = 0; i < kWidth; ++i) sums[i] += codes[i] * values[i];
  }
  keep(sums);
  return double{kSteps} * kWidth;
}

[[gnu::noinline]] double f32_portable() {
  constexpr int kWidth = 64;
  float sums[kWidth] = {}, values[kWidth];
  std::fill_n(values, kWidth, 0.5f);
  for (int step = 0; step < kSteps; ++step) {
    keep(values);
    for (int i = 0; i < kWidth; ++i) sums[i] += values[i] * 0.25f;
  }
  keep(sums);
  return double{kSteps} * kWidth;
}

void read_portable(const std::byte* from, std::size_t bytes) {
  const auto* const words = reinterpret_cast<const std::uint64_t*>(from);
  std::uint64_t sums[8] = {};  // one chain of additions would be slower than memory
  for (std::size_t i = 0; i + 8 <= bytes / 8; i += 8) {
    for (std::size_t k = 0; k < 8; ++k) sums[k] += words[i + k];
  }
  keep(sums);
}

#if defined(__x86_64__)

[[gnu::noinline, gnu::target("avx512f,avx512vnni")]] double int8_avx512() {
  __m512i sums[kChains] = {};
  hide(sums);
  __m512i codes = _mm512_set1_epi8(3);
  const __m512i values = _mm512_set1_epi8(5);
  for (int step = 0; step < kSteps; ++step) {
    asm volatile("" : "+v"(codes));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], codes, values);
  }
  keep(sums);
  return double{kSteps} * kChains * 64;
}

[[gnu::noinline, gnu::target("avx512f")]] double f32_avx512() {
  __m512 sums[kChains] = {};
  hide(sums);
  __m512 weights = _mm512_set1_ps(0.5f);
  const __m512 values = _mm512_set1_ps(0.25f);
  for (int step = 0; step < kSteps; ++step) {
    asm volatile("" : "+v"(weights));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = _mm512_fmadd_ps(weights, values, sums[i]);
  }
  keep(sums);
  return double{kSteps} * kChains * 16;
}

[[gnu::noinline, gnu::target("avx512f,avx512bf16")]] double bf16_avx512() {
  __m512 sums[kChains] = {};
  hide(sums);
  __m512i weights = _mm512_set1_epi16(0x3f00);  // 0.5
  const __m512i values = _mm512_set1_epi16(0x3e80);
  for (int step = 0; step < kSteps; ++step) {
    asm volatile("" : "+v"(weights));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      sums[i] = _mm512_dpbf16_ps(sums[i], (__m512bh)weights, (__m512bh)values);
    }
  }
  keep(sums);
  return double{kSteps} * kChains * 32;
}

#if defined(__linux__)
/// Of 16 x 16 sums and 32 inputs each. That the tiles may be used, available_isas() has found out.
[[gnu::noinline]] double bf16_amx() {
  AmxShapes before;
  const AmxShapes shapes = {.row_bytes = {64, 64, 64, 64, 64, 64},
                            .rows = {16, 16, 16, 16, 16, 16}};
  asm volatile("sttilecfg %0" : "=m"(before));
  asm volatile("ldtilecfg %0" ::"m"(shapes));
  asm volatile(
      "tilezero %tmm0\n tilezero %tmm1\n tilezero %tmm2\n tilezero %tmm3\n"
      "tilezero %tmm4\n tilezero %tmm5");
  for (int step = 0; step < kSteps; ++step) {
    asm volatile(
        "tdpbf16ps %tmm5, %tmm4, %tmm0\n tdpbf16ps %tmm5, %tmm4, %tmm1\n"
        "tdpbf16ps %tmm5, %tmm4, %tmm2\n tdpbf16ps %tmm5, %tmm4, %tmm3");
  }
  asm volatile("ldtilecfg %0" ::"m"(before));
  return double{kSteps} * 4 * 16 * 16 * 32;
}
#define FIRP_AMX_PEAK
#endif

[[gnu::target("avx512f")]] void read_avx512(const std::byte* from, std::size_t bytes) {
  __m512i sums[8] = {};
  for (std::size_t at = 0; at + 512 <= bytes; at += 512) {
#pragma GCC unroll 8
    for (std::size_t k = 0; k < 8; ++k) {
      // Far enough ahead for the memory's latency: the CPU's own prefetcher stops at pages.
      _mm_prefetch(reinterpret_cast<const char*>(from + at + 64 * k + 8192), _MM_HINT_T0);
      sums[k] = _mm512_add_epi64(sums[k], _mm512_loadu_si512(from + at + 64 * k));
    }
  }
  keep(sums);
}

#if !defined(__clang__) || __clang_major__ >= 12
#define FIRP_AVX_VNNI
[[gnu::noinline, gnu::target("avx2,avxvnni")]] double int8_avx_vnni() {
  __m256i sums[kChains] = {};
  hide(sums);
  __m256i codes = _mm256_set1_epi8(3);
  const __m256i values = _mm256_set1_epi8(5);
  for (int step = 0; step < kSteps; ++step) {
    asm volatile("" : "+x"(codes));
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sums[i] = _mm256_dpbusd_avx_epi32(sums[i], codes, values);
  }
  keep(sums);
  return double{kSteps} * kChains * 32;
}
#endif

/// As products of 4-bit codes can be: pairs are added up in 16 bits.
[[gnu::noinline, gnu::target("avx2")]] double int8_avx2() {
  constexpr int kSums = 12;
  __m256i sums[kSums] = {};
  hide(sums);
  __m256i codes = _mm256_set1_epi8(3);
  const __m256i values = _mm256_set1_epi8(5);
  for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      asm volatile("" : "+x"(codes));  // or one product would do for all
      sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(codes, values));
    }
  }
  keep(sums);
  return double{kSteps} * kSums * 32;
}

[[gnu::noinline, gnu::target("avx2,fma")]] double f32_avx2() {
  constexpr int kSums = 12;
  __m256 sums[kSums] = {};
  hide(sums);
  __m256 weights = _mm256_set1_ps(0.5f);
  const __m256 values = _mm256_set1_ps(0.25f);
  for (int step = 0; step < kSteps; ++step) {
    asm volatile("" : "+x"(weights));
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_fmadd_ps(weights, values, sums[i]);
  }
  keep(sums);
  return double{kSteps} * kSums * 8;
}

[[gnu::target("avx2")]] void read_avx2(const std::byte* from, std::size_t bytes) {
  __m256i sums[8] = {};
  for (std::size_t at = 0; at + 256 <= bytes; at += 256) {
#pragma GCC unroll 4
    for (std::size_t k = 0; k < 4; ++k) {
      _mm_prefetch(reinterpret_cast<const char*>(from + at + 64 * k + 8192), _MM_HINT_T0);
    }
#pragma GCC unroll 8
    for (std::size_t k = 0; k < 8; ++k) {
      sums[k] = _mm256_add_epi64(
          sums[k], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at + 32 * k)));
    }
  }
  keep(sums);
}

#endif

struct IsaPeaks {
  std::string_view isa;  ///< as Kernels names it
  const char* instruction;
  int instructions_per_dot;
  double (*int8)();
  double (*f32)();
  double (*bf16)();  ///< nullptr: none
};

/// Best first.
constexpr IsaPeaks kIsaPeaks[] = {
#if defined(__x86_64__)
#ifdef FIRP_AMX_PEAK
    {"avx512_amx", "vpdpbusd zmm", 1, int8_avx512, f32_avx512, bf16_amx},
#endif
    {"avx512_bf16", "vpdpbusd zmm", 1, int8_avx512, f32_avx512, bf16_avx512},
    {"avx512", "vpdpbusd zmm", 1, int8_avx512, f32_avx512, nullptr},
#ifdef FIRP_AVX_VNNI
    {"avx_vnni", "vpdpbusd ymm", 1, int8_avx_vnni, f32_avx2, nullptr},
#endif
    {"avx2", "vpmaddubsw + vpaddw ymm", 2, int8_avx2, f32_avx2, nullptr},
#endif
    {"portable", "compiled loop", 1, int8_portable, f32_portable, nullptr},
};

const IsaPeaks& peaks_of(std::string_view isa) {
  const std::vector<std::string> here = available_isas();
  const IsaPeaks* best = nullptr;
  for (const IsaPeaks& each : kIsaPeaks) {
    if (std::ranges::count(here, each.isa) == 0) continue;
    if (each.isa == isa) return each;
    if (best == nullptr) best = &each;
  }
  return *best;
}

double measure_multiply_adds(ThreadPool& pool, double (*work)()) {
  double best = 0;
  std::vector<double> done(pool.size());
  for (int run = 0; run < kRuns; ++run) {
    double seconds = 0;
    pool.run([&](int thread) {
      pool.barrier(thread);  // all are awake
      const Stopwatch watch;
      done[thread] = work();
      pool.barrier(thread);
      if (thread == 0) seconds = watch.seconds();
    });
    double sum = 0;
    for (const double each : done) sum += each;
    best = std::max(best, sum / seconds);
  }
  return best;
}

}  // namespace

std::size_t out_of_cache_bytes() {
  return std::max(std::size_t{256} << 20, 4 * last_level_cache_bytes() + 1);
}

MemoryReader::MemoryReader(ThreadPool& pool) : pool_(pool), memory_(pool.size()) {
  const auto bytes_a_thread = out_of_cache_bytes() / memory_.size() / 4096 * 4096;
  // Each thread's part is first touched, and so placed, by itself; and written, since memory that
  // was never written is one page of zeros, in the cache.
  pool_.run([&](int thread) {
    memory_[thread] = AlignedBytes(bytes_a_thread);
    std::memset(memory_[thread].data(), 1, bytes_a_thread);
  });
}

double MemoryReader::bytes_per_second() {
  void (*read)(const std::byte*, std::size_t) = read_portable;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) {
    read = read_avx512;
  } else if (__builtin_cpu_supports("avx2")) {
    read = read_avx2;
  }
#endif
  double seconds = 0;
  pool_.run([&](int thread) {
    pool_.barrier(thread);  // all are awake
    const Stopwatch watch;
    read(memory_[thread].data(), memory_[thread].size());
    pool_.barrier(thread);
    if (thread == 0) seconds = watch.seconds();
  });
  return static_cast<double>(memory_.front().size() * memory_.size()) / seconds;
}

MachinePeaks measure_peaks(ThreadPool& pool, std::string_view isa) {
  const IsaPeaks& functions = peaks_of(isa);
  MachinePeaks peaks;
  peaks.threads = pool.size();
  MemoryReader reader(pool);
  for (int run = 0; run < kRuns; ++run) {
    peaks.bytes_per_second = std::max(peaks.bytes_per_second, reader.bytes_per_second());
  }
  peaks.int8_per_second = measure_multiply_adds(pool, functions.int8);
  peaks.f32_per_second = measure_multiply_adds(pool, functions.f32);
  if (functions.bf16 != nullptr) {
    peaks.bf16_per_second = measure_multiply_adds(pool, functions.bf16);
  }
  peaks.instruction = functions.instruction;
  peaks.instructions_per_dot = functions.instructions_per_dot;
  return peaks;
}

nlohmann::ordered_json machine_json(const MachinePeaks& peaks, std::string_view isa) {
  nlohmann::ordered_json json = {
      {"cpu", cpu_name()},
      {"cores", std::thread::hardware_concurrency()},
      {"usable_cores", usable_cores()},
      {"threads", peaks.threads},
      {"isa", isa},
      {"last_level_cache_bytes", last_level_cache_bytes()},
      {"read_bytes_per_second", peaks.bytes_per_second},
      {"int8_multiply_adds_per_second", peaks.int8_per_second},
      {"int8_instruction", peaks.instruction},
      {"f32_multiply_adds_per_second", peaks.f32_per_second},
      {"bf16_multiply_adds_per_second", nullptr},
      {"multiply_adds_per_byte", peaks.balance()},
  };
  if (peaks.bf16_per_second > 0) json["bf16_multiply_adds_per_second"] = peaks.bf16_per_second;
  return json;
}

}  // namespace firp
