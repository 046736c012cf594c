#include "bench/kernel_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <random>

#include "base/error.h"
#include "bench/ggml_products.h"
#include "bench/random_weights.h"

namespace firp {
namespace {

/// Copies of a matrix in our form, multiplied in turn; in one block of memory, as the engine's are.
class OurProducts {
 public:
  OurProducts(const Tensor& matrix, int copies, const Kernels& kernels, ThreadPool& pool)
      : kernels_(kernels),
        pool_(pool),
        memory_(copies * PackedMatrix::packed_bytes(matrix, matrix.type)) {
    std::byte* at = memory_.data();
    for (int i = 0; i < copies; ++i) {
      at += copies_.emplace_back(matrix, matrix.type, at).bytes();
    }
    pool_.run([&](int thread) {
      const auto [begin, end] = share(copies_.front().blocks(), thread, pool_.size());
      for (PackedMatrix& copy : copies_) copy.pack(matrix, begin, end);
    });
  }

  std::size_t packed_bytes() const { return copies_.front().bytes(); }
  std::span<const float> result() const { return y_; }

  void prepare(std::span<const float> x, int rows, int products) {
    const int inputs = copies_.front().inputs();
    products_ = products;
    x_ = Activations(rows, inputs);
    x_.resize(rows, inputs);
    for (int row = 0; row < rows; ++row) {
      std::copy_n(x.data() + static_cast<std::size_t>(row) * inputs, inputs, x_.values(row));
    }
    y_.assign(static_cast<std::size_t>(rows) * copies_.front().outputs(), 0.0f);
  }

  /// As a chain of layers does it: no product begins before the one before has ended, and each
  /// fetches ahead what its thread reads next.
  void compute() {
    const ActivationForm form = kernels_.form(copies_.front().format().kind);
    pool_.run([&](int thread) {
      const Share rows = share(x_.rows(), thread, pool_.size());
      const int own_block = share(copies_.front().blocks(), thread, pool_.size()).begin;
      for (int i = 0; i < products_; ++i) {
        const PackedMatrix& w = copies_[i % copies_.size()];
        const PackedMatrix& after = copies_[(i + 1) % copies_.size()];
        if (form != ActivationForm::kValues) {
          for (int row = rows.begin; row < rows.end; ++row) {
            kernels_.prepare(x_, row, 0, x_.group_count(), form);
          }
          pool_.barrier(thread);
        }
        pool_.divide(thread, w.blocks(), kTileBlocks, [&](int begin, int end, bool goes_on) {
          kernels_.matmul({.weights = w,
                           .first_block = begin,
                           .end_block = end,
                           .y = y_.data(),
                           .y_stride = static_cast<std::size_t>(w.outputs()),
                           .next = goes_on ? w.block(end) : after.block(own_block)},
                          x_);
        });
        pool_.barrier(thread);
      }
    });
  }

 private:
  const Kernels& kernels_;
  ThreadPool& pool_;
  AlignedBytes memory_;
  std::vector<PackedMatrix> copies_;
  int products_ = 0;
  Activations x_{1, 1};
  std::vector<float> y_;
};

std::vector<float> normal_values(std::size_t count) {
  std::mt19937 generator(2);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

RandomWeights random_matrix(ggml_type type, MatrixShape shape) {
  const float deviation = 1.0f / std::sqrt(static_cast<float>(shape.inputs));
  return RandomWeights("random", type, shape.outputs, shape.inputs, deviation, 1);
}

/// Instructions for a vector of outputs, 32 inputs and a row, without what its rows share
/// (docs/performance.md).
int tile_instructions(const PackedFormat& format, int instructions_per_dot) {
  const int groups = 32 / format.group;
  const int scales = 1 + groups + (format.has_min ? groups : 0);
  if (instructions_per_dot == 1) return 8 + scales;
  // 8 products, and what adds them up: in 16 bits as long as they fit, then in 32.
  const int bits = format.product_bits();
  const int dots = bits == 8 ? 31 : bits == 6 ? 18 : bits == 5 ? 17 : 16;
  const int conversions = groups;
  return dots + conversions + scales;
}

}  // namespace

MatrixShape parse_matrix_shape(std::string_view text) {
  MatrixShape shape{};
  const char* const end = text.data() + text.size();
  const auto outputs = std::from_chars(text.data(), end, shape.outputs);
  constexpr int kMost = 1 << 24;
  if (outputs.ec == std::errc() && outputs.ptr != end && *outputs.ptr == 'x') {
    const auto inputs = std::from_chars(outputs.ptr + 1, end, shape.inputs);
    if (inputs.ec == std::errc() && inputs.ptr == end && shape.outputs >= 2 && shape.inputs >= 1 &&
        shape.outputs <= kMost && shape.inputs <= kMost) {
      return shape;
    }
  }
  throw Error(fmt::format("'{}' is not a shape: outputs x inputs, as in 4096x14336", text));
}

ProductLimit product_limit(ggml_type type, MatrixShape shape, int rows, const MachinePeaks& peaks) {
  const double weights = static_cast<double>(shape.outputs) * shape.inputs;
  const double bytes = static_cast<double>(ggml_row_size(type, shape.inputs)) * shape.outputs;
  const PackedFormat format = packed_format(type);
  double seconds_per_multiply_add;
  if (format.group > 0) {
    seconds_per_multiply_add = tile_instructions(format, peaks.instructions_per_dot) /
                               (8.0 * peaks.instructions_per_dot) / peaks.int8_per_second;
  } else if (type == GGML_TYPE_BF16 && peaks.bf16_per_second > 0) {
    seconds_per_multiply_add = 1 / peaks.bf16_per_second;
  } else {
    seconds_per_multiply_add = 1 / peaks.f32_per_second;
  }
  return {.memory_seconds = bytes / peaks.bytes_per_second,
          .arithmetic_seconds = weights * rows * seconds_per_multiply_add};
}

std::vector<KernelResult> bench_kernels(const KernelBenchOptions& options, const Kernels& kernels,
                                        ThreadPool& pool, const MachinePeaks& peaks,
                                        const std::function<void(const KernelResult&)>& on_result) {
  MemoryReader reader(pool);
  std::vector<KernelResult> results;
  for (const MatrixShape shape : options.shapes) {
    for (const ggml_type type : options.types) {
      if (!has_whole_blocks(type, shape.inputs)) continue;
      const RandomWeights random = random_matrix(type, shape);
      const Tensor& matrix = random.tensor();
      // As many weights as 40 layers of 4096 x 4096 have, and no fewer than the caches demand.
      const double weights = static_cast<double>(shape.outputs) * shape.inputs;
      constexpr double kSampleWeights = 40.0 * 4096 * 4096;
      const auto copies = static_cast<int>(
          std::ceil(static_cast<double>(out_of_cache_bytes()) / matrix.data.size()));
      const int products = std::max(copies, static_cast<int>(std::ceil(kSampleWeights / weights)));

      OurProducts ours(matrix, copies, kernels, pool);
      std::vector<GgmlProducts> ggml;
      for (ggml_backend_buffer_type_t const form : GgmlProducts::forms(matrix)) {
        ggml.emplace_back(matrix, copies, form, pool.size());
      }
      for (const int rows : options.rows) {
        const std::vector<float> x = normal_values(static_cast<std::size_t>(rows) * shape.inputs);
        ours.prepare(x, rows, products);
        for (GgmlProducts& form : ggml) form.prepare(x, rows, products);
        ours.compute();  // warms up
        const OtherLoad load;
        MachinePeaks peaks_now = peaks;
        peaks_now.bytes_per_second = 0;
        Samples samples(1 + ggml.size());
        // The memory is measured before each of them: what neighbours leave of it changes quickly.
        const auto measure = [&](std::size_t way, const std::function<void()>& work) {
          peaks_now.bytes_per_second =
              std::max(peaks_now.bytes_per_second, reader.bytes_per_second());
          samples.measure(way, work);
        };
        while (!samples.enough()) {
          measure(0, [&] { ours.compute(); });
          for (std::size_t f = 0; f < ggml.size(); ++f) {
            measure(1 + f, [&] { ggml[f].compute(); });
          }
        }

        KernelResult result = {.type = type,
                               .shape = shape,
                               .rows = rows,
                               .products = products,
                               .ours = samples.timing(0),
                               .packed_bytes = ours.packed_bytes(),
                               .file_bytes = matrix.data.size(),
                               .read_bytes_per_second = peaks_now.bytes_per_second,
                               .limit = product_limit(type, shape, rows, peaks_now),
                               .other_load_cores = load.cores()};
        result.limit.memory_seconds *= products;
        result.limit.arithmetic_seconds *= products;
        for (std::size_t f = 0; f < ggml.size(); ++f) {
          const Timing timing = samples.timing(1 + f);
          if (f == 0 || timing.best < result.ggml.best) {
            result.ggml = timing;
            result.ggml_form = ggml[f].form();
          }
        }
        results.push_back(result);
        on_result(result);
      }
    }
  }
  return results;
}

double difference_from_ggml(ggml_type type, MatrixShape shape, int rows, const Kernels& kernels,
                            ThreadPool& pool) {
  const RandomWeights random = random_matrix(type, shape);
  const std::vector<float> x = normal_values(static_cast<std::size_t>(rows) * shape.inputs);
  constexpr int kCopies = 2;
  OurProducts ours(random.tensor(), kCopies, kernels, pool);
  ours.prepare(x, rows, kCopies);
  ours.compute();
  double greatest = 0;
  for (ggml_backend_buffer_type_t const form : GgmlProducts::forms(random.tensor())) {
    GgmlProducts ggml(random.tensor(), kCopies, form, pool.size());
    ggml.prepare(x, rows, kCopies);
    ggml.compute();
    const std::vector<float> expected = ggml.result();
    double error = 0, power = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      error += std::pow(ours.result()[i] - expected[i], 2);
      power += std::pow(expected[i], 2);
    }
    greatest = std::max(greatest, std::sqrt(error / power));
  }
  return greatest;
}

std::string kernel_table_head(const MachinePeaks& peaks) {
  std::string bf16 =
      peaks.bf16_per_second > 0 ? fmt::format(", BF16 {:.0f}", peaks.bf16_per_second / 1e9) : "";
  return fmt::format(
      "{} threads read {:.1f} GB/s; multiply-adds: 8-bit {:.0f} G/s ({}){}, F32 {:.0f}; balance "
      "{:.1f} multiply-adds a byte\n"
      "{:<5} {:<16} {:>4} {:>9} {:>8} {:>9} {:>8} {:>6} {:>7} {:>7} {:>9} {:>6}  {}\n",
      peaks.threads, peaks.bytes_per_second / 1e9, peaks.int8_per_second / 1e9, peaks.instruction,
      bf16, peaks.f32_per_second / 1e9, peaks.balance(), "type", "shape", "rows", "ours ms",
      "median", "ggml ms", "median", "ratio", "GB/s", "of GB/s", "limit ms", "of it",
      "ggml's form");
}

std::string kernel_table_line(const KernelResult& result) {
  const bool memory = result.limit.memory_seconds >= result.limit.arithmetic_seconds;
  const std::string disturbed =
      result.other_load_cores > kNegligibleLoadCores
          ? fmt::format(", disturbed: others took {:.2f} cores", result.other_load_cores)
          : "";
  return fmt::format(
      "{:<5} {:<16} {:>4} {:>9.2f} {:>8.2f} {:>9.2f} {:>8.2f} {:>5.2f}x {:>7.1f} {:>7.1f} {:>7.2f} "
      "{} {:>4.0f} %  {}{}\n",
      ggml_type_name(result.type),
      fmt::format("{}x{} *{}", result.shape.outputs, result.shape.inputs, result.products),
      result.rows, 1e3 * result.ours.best, 1e3 * result.ours.median, 1e3 * result.ggml.best,
      1e3 * result.ggml.median, result.ratio(), result.bytes_per_second() / 1e9,
      result.read_bytes_per_second / 1e9, 1e3 * result.limit.seconds(), memory ? 'm' : 'a',
      100 * result.fraction_of_limit(), result.ggml_form, disturbed);
}

nlohmann::ordered_json kernel_json(nlohmann::ordered_json machine,
                                   std::span<const KernelResult> results) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const KernelResult& result : results) {
    list.push_back({{"type", ggml_type_name(result.type)},
                    {"outputs", result.shape.outputs},
                    {"inputs", result.shape.inputs},
                    {"rows", result.rows},
                    {"products", result.products},
                    {"ours_best_seconds", result.ours.best},
                    {"ours_median_seconds", result.ours.median},
                    {"ggml_best_seconds", result.ggml.best},
                    {"ggml_median_seconds", result.ggml.median},
                    {"ggml_form", result.ggml_form},
                    {"speedup_over_ggml", result.ratio()},
                    {"packed_bytes", result.packed_bytes},
                    {"file_bytes", result.file_bytes},
                    {"bytes_per_second", result.bytes_per_second()},
                    {"read_bytes_per_second", result.read_bytes_per_second},
                    {"memory_limit_seconds", result.limit.memory_seconds},
                    {"arithmetic_limit_seconds", result.limit.arithmetic_seconds},
                    {"fraction_of_limit", result.fraction_of_limit()},
                    {"other_load_cores", result.other_load_cores}});
  }
  return {{"mode", "kernels"}, {"machine", std::move(machine)}, {"results", std::move(list)}};
}

}  // namespace firp
