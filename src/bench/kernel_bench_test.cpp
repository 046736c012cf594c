#include "bench/kernel_bench.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "bench/ggml_products.h"
#include "bench/peaks.h"
#include "bench/random_weights.h"
#include "model/tensor_types.h"

namespace firp {
namespace {

MachinePeaks round_peaks() {
  MachinePeaks peaks;
  peaks.threads = 2;
  peaks.bytes_per_second = 1e9;
  peaks.int8_per_second = 100e9;
  peaks.f32_per_second = 10e9;
  peaks.instruction = "dot";
  return peaks;
}

TEST(KernelBench, GgmlMakesTheSameProductInEveryForm) {
  ThreadPool pool(2);
  for (const ggml_type type : kMatrixTypes) {
    for (const int rows : {1, 7}) {
      const double difference = difference_from_ggml(type, {.outputs = 192, .inputs = 512}, rows,
                                                     default_kernels(), pool);
      // Both round the rows to 8 bits (to 16 at F16 and BF16), in groups of their own.
      EXPECT_LT(difference, 0.02) << ggml_type_name(type) << ", rows " << rows;
      if (type != GGML_TYPE_F32) {
        EXPECT_GT(difference, 0) << "was ggml asked? " << ggml_type_name(type);
      }
    }
  }
}

TEST(KernelBench, TheLimitIsMemoryAtFewRowsAndArithmeticAtMany) {
  const MachinePeaks peaks = round_peaks();
  constexpr MatrixShape kShape = {.outputs = 1000, .inputs = 1024};
  const double weights = 1000 * 1024;

  const ProductLimit one = product_limit(GGML_TYPE_Q4_0, kShape, 1, peaks);
  EXPECT_DOUBLE_EQ(one.memory_seconds, weights * 18 / 32 / 1e9);
  EXPECT_DOUBLE_EQ(one.seconds(), one.memory_seconds);
  // 8 dots and 2 float slots for 32 inputs.
  EXPECT_NEAR(one.arithmetic_seconds, weights / 100e9 * 10 / 8, 1e-12);
  const ProductLimit many = product_limit(GGML_TYPE_Q4_0, kShape, 64, peaks);
  EXPECT_DOUBLE_EQ(many.memory_seconds, one.memory_seconds);
  EXPECT_DOUBLE_EQ(many.seconds(), 64 * one.arithmetic_seconds);

  const auto arithmetic = [&](ggml_type type, const MachinePeaks& p) {
    return product_limit(type, kShape, 1, p).arithmetic_seconds * 100e9 / weights;
  };
  EXPECT_NEAR(arithmetic(GGML_TYPE_Q4_K, peaks), 11.0 / 8, 1e-9);  // a min
  EXPECT_NEAR(arithmetic(GGML_TYPE_Q6_K, peaks), 11.0 / 8, 1e-9);  // groups of 16
  EXPECT_NEAR(arithmetic(GGML_TYPE_Q2_K, peaks), 13.0 / 8, 1e-9);  // both
  EXPECT_NEAR(arithmetic(GGML_TYPE_F16, peaks), 10.0, 1e-9);
  EXPECT_NEAR(arithmetic(GGML_TYPE_BF16, peaks), 10.0, 1e-9);
  MachinePeaks with_bf16 = peaks;
  with_bf16.bf16_per_second = 20e9;
  EXPECT_NEAR(arithmetic(GGML_TYPE_BF16, with_bf16), 5.0, 1e-9);
  EXPECT_NEAR(arithmetic(GGML_TYPE_F16, with_bf16), 10.0, 1e-9);
  MachinePeaks without_vnni = peaks;
  without_vnni.instructions_per_dot = 2;
  EXPECT_NEAR(arithmetic(GGML_TYPE_Q4_0, without_vnni), 19.0 / 16, 1e-9);
  EXPECT_NEAR(arithmetic(GGML_TYPE_Q4_1, without_vnni), 20.0 / 16, 1e-9);
  EXPECT_NEAR(arithmetic(GGML_TYPE_Q5_K, without_vnni), 21.0 / 16, 1e-9);
  EXPECT_NEAR(arithmetic(GGML_TYPE_Q6_K, without_vnni), 23.0 / 16, 1e-9);
  EXPECT_NEAR(arithmetic(GGML_TYPE_Q8_0, without_vnni), 34.0 / 16, 1e-9);  // 4 a dot
  // What a codebook's entries have is what counts: 8 bits, and 5.
  EXPECT_NEAR(arithmetic(GGML_TYPE_IQ4_NL, without_vnni), 34.0 / 16, 1e-9);
  EXPECT_NEAR(arithmetic(GGML_TYPE_MXFP4, without_vnni), 20.0 / 16, 1e-9);
}

TEST(KernelBench, ParsesShapesAndTypes) {
  EXPECT_EQ(parse_matrix_shape("4096x14336").outputs, 4096);
  EXPECT_EQ(parse_matrix_shape("4096x14336").inputs, 14336);
  for (const char* bad : {"", "x", "4096", "4096x", "x4096", "4096x4096x2", "4096 x 4096", "-2x32",
                          "1x32", "32x0", "99999999x32", "99999999999x32", "4096*32"}) {
    EXPECT_THROW(parse_matrix_shape(bad), Error) << bad;
  }
  EXPECT_EQ(parse_matrix_type("Q4_k"), GGML_TYPE_Q4_K);
  for (const char* bad : {"", "q4", "iq2_xxs", "f64", "i8"}) {
    EXPECT_THROW(parse_matrix_type(bad), Error) << bad;
  }
}

TEST(KernelBench, BestAndMedian) {
  const Timing timing = timing_of({3, 1, 2, 9, 8});
  EXPECT_EQ(timing.best, 1);
  EXPECT_EQ(timing.median, 3);
}

TEST(KernelBench, RandomWeightsHaveTheirSpreadInEveryRow) {
  for (const ggml_type type : kMatrixTypes) {
    SCOPED_TRACE(ggml_type_name(type));
    const RandomWeights weights("w", type, 100, 512, 0.25f, 1);
    EXPECT_EQ(weights.tensor().rows(), 100);
    const std::vector<float> values = dequantize(weights.tensor());
    for (const int row : {0, 47, 48, 99}) {
      double sum = 0, squares = 0;
      for (int i = 0; i < 512; ++i) {
        sum += values[row * 512 + i];
        squares += values[row * 512 + i] * values[row * 512 + i];
      }
      EXPECT_NEAR(sum / 512, 0, 0.05);
      EXPECT_NEAR(std::sqrt(squares / 512), 0.25, 0.04);
    }
  }
  EXPECT_THROW(RandomWeights("w", GGML_TYPE_Q4_K, 64, 576, 1, 1), Error);
}

TEST(KernelBench, MeasuresEveryCombinationAndTellsOfEach) {
  ThreadPool pool(2);
  const KernelBenchOptions options = {.types = {GGML_TYPE_Q4_0, GGML_TYPE_Q8_0},
                                      .shapes = {{.outputs = 4096, .inputs = 4096}},
                                      .rows = {1}};
  int told = 0;
  const auto results =
      bench_kernels(options, default_kernels(), pool, round_peaks(), [&](const KernelResult& r) {
        EXPECT_EQ(r.type, told == 0 ? GGML_TYPE_Q4_0 : GGML_TYPE_Q8_0);
        ++told;
      });
  EXPECT_EQ(told, 2);
  ASSERT_EQ(results.size(), 2u);
  for (const KernelResult& r : results) {
    // The convention of docs/performance.md: 40, or more where so many fit into the caches.
    const double bytes = 4096.0 * 4096 / 32 * (r.type == GGML_TYPE_Q4_0 ? 18 : 34);
    const int products = std::max(
        40, static_cast<int>(std::ceil(static_cast<double>(out_of_cache_bytes()) / bytes)));
    EXPECT_EQ(r.products, products);
    EXPECT_GT(r.ours.best, 0);
    EXPECT_GE(r.ours.median, r.ours.best);
    EXPECT_GT(r.ggml.best, 0);
    EXPECT_GE(r.ggml.median, r.ggml.best);
    MachinePeaks peaks = round_peaks();
    peaks.bytes_per_second = r.read_bytes_per_second;
    const ProductLimit limit = product_limit(r.type, r.shape, r.rows, peaks);
    EXPECT_DOUBLE_EQ(r.limit.memory_seconds, products * limit.memory_seconds);
    EXPECT_DOUBLE_EQ(r.limit.arithmetic_seconds, products * limit.arithmetic_seconds);
    EXPECT_NE(kernel_table_line(r).find(ggml_type_name(r.type)), std::string::npos);
  }
  EXPECT_NEAR(results[0].file_bytes, 4096.0 * 4096 * 18 / 32, 1);

  const auto json = kernel_json(machine_json(round_peaks(), "avx2"), results);
  EXPECT_EQ(json["mode"], "kernels");
  EXPECT_EQ(json["machine"]["threads"], 2);
  EXPECT_EQ(json["machine"]["isa"], "avx2");
  EXPECT_EQ(json["machine"]["multiply_adds_per_byte"], 100.0);
  EXPECT_TRUE(json["machine"]["bf16_multiply_adds_per_second"].is_null());
  ASSERT_EQ(json["results"].size(), 2u);
  for (const char* key : {"type", "outputs", "inputs", "rows", "products", "ours_best_seconds",
                          "ours_median_seconds", "ggml_best_seconds", "ggml_median_seconds",
                          "ggml_form", "speedup_over_ggml", "packed_bytes", "file_bytes",
                          "bytes_per_second", "read_bytes_per_second", "memory_limit_seconds",
                          "arithmetic_limit_seconds", "fraction_of_limit", "other_load_cores"}) {
    EXPECT_TRUE(json["results"][0].contains(key)) << key;
    EXPECT_FALSE(json["results"][0][key].is_null()) << key;
  }
}

TEST(KernelBench, LeavesOutTypesThatAShapeCannotHave) {
  ThreadPool pool(1);
  const KernelBenchOptions options = {.types = {GGML_TYPE_Q4_K, GGML_TYPE_Q4_0},
                                      .shapes = {{.outputs = 1536, .inputs = 576}},
                                      .rows = {1}};
  const auto results =
      bench_kernels(options, default_kernels(), pool, round_peaks(), [](const KernelResult&) {});
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].type, GGML_TYPE_Q4_0);
}

TEST(Peaks, AreOnesThatAMachineCanHave) {
  ThreadPool pool(2);
  for (const std::string& isa : available_isas()) {
    const MachinePeaks peaks = measure_peaks(pool, isa);
    EXPECT_EQ(peaks.threads, 2);
    EXPECT_GT(peaks.bytes_per_second, 1e8) << isa;
    EXPECT_LT(peaks.bytes_per_second, 1e13) << isa;
    EXPECT_GT(peaks.int8_per_second, 1e7) << isa;
    EXPECT_LT(peaks.int8_per_second, 1e14) << isa;
    EXPECT_GT(peaks.f32_per_second, 1e7) << isa;
    EXPECT_LT(peaks.f32_per_second, 1e14) << isa;
  }
  EXPECT_FALSE(measure_peaks(pool, "an unknown one").instruction.empty());
}

}  // namespace
}  // namespace firp
