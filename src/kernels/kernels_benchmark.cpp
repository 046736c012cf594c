// What a product costs: 4096 x 4096 by rows, from memory rather than from a cache.
//   kernels_benchmark --benchmark_filter=avx512/q4_0 --benchmark_repetitions=5

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <random>

#include "kernels/kernels.h"
#include "kernels/random_tensor.h"

namespace firp {
namespace {

constexpr int kSize = 4096;
constexpr std::size_t kRotatedBytes = std::size_t{256} << 20;  // well over any last-level cache

/// Copies of one matrix, in memory of their own; those of the last type used.
const std::vector<PackedMatrix>& matrices(ggml_type type) {
  static ggml_type kept_type = GGML_TYPE_COUNT;
  static std::vector<PackedMatrix> kept;
  if (type != kept_type) {
    kept.clear();
    const RandomTensor random(type, kSize, kSize, 1);
    do {
      kept.emplace_back(random.tensor());
    } while (kept.size() * kept.front().bytes() < kRotatedBytes);
    kept_type = type;
  }
  return kept;
}

void measure_matmul(benchmark::State& state, const Kernels& kernels, ggml_type type, int rows) {
  const std::vector<PackedMatrix>& rotated = matrices(type);
  Activations x(rows, kSize);
  x.resize(rows, kSize);
  std::mt19937 generator(2);
  std::normal_distribution<float> normal;
  for (int row = 0; row < rows; ++row) {
    for (int i = 0; i < kSize; ++i) x.values(row)[i] = normal(generator);
    kernels.prepare(x, row, 0, x.group_count(), kernels.form(packed_format(type).kind));
  }
  std::vector<float> y(static_cast<std::size_t>(rows) * kSize);
  std::size_t next = 0;
  for (auto _ : state) {
    const PackedMatrix& w = rotated[next++ % rotated.size()];
    const PackedMatrix& after = rotated[next % rotated.size()];
    kernels.matmul({.weights = w,
                    .first_block = 0,
                    .end_block = w.blocks(),
                    .y = y.data(),
                    .y_stride = kSize,
                    .next = after.block(0)},
                   x);
    benchmark::ClobberMemory();
  }
  const auto iterations = static_cast<double>(state.iterations());
  state.SetBytesProcessed(
      static_cast<std::int64_t>(iterations * static_cast<double>(rotated.front().bytes())));
  state.counters["multiply_adds"] =
      benchmark::Counter(iterations * rows * kSize * kSize, benchmark::Counter::kIsRate);
}

const bool kRegistered = [] {
  for (const std::string& isa : available_isas()) {
    for (const ggml_type type : kMatrixTypes) {
      for (const int rows : {1, 2, 3, 4, 5, 6, 8, 16, 32, 33}) {
        benchmark::RegisterBenchmark(
            fmt::format("{}/{}/{}", isa, ggml_type_name(type), rows).c_str(),
            [&table = kernels(isa), type, rows](benchmark::State& state) {
              measure_matmul(state, table, type, rows);
            })
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace firp
