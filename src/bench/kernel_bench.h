#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "bench/peaks.h"
#include "bench/timing.h"
#include "kernels/kernels.h"

namespace firp {

struct MatrixShape {
  int outputs, inputs;
};

/// "4096x14336": outputs x inputs. An Error for anything else.
MatrixShape parse_matrix_shape(std::string_view text);

/// The least time that a machine can take, if memory and arithmetic overlap perfectly.
struct ProductLimit {
  double memory_seconds;      ///< the file's bytes at the measured bandwidth
  double arithmetic_seconds;  ///< multiply-adds at the measured peak, with the slots of the scales

  double seconds() const { return std::max(memory_seconds, arithmetic_seconds); }
};

/// Of one product with `rows` rows. A group of weights with a scale of their own costs, beside its
/// dots, a multiplication and an fma for the scales, and one more fma where it has a min: per 16
/// outputs 8 dots and 2 (3) more for a group of 32, 4 and 2 (3) for one of 16.
ProductLimit product_limit(ggml_type type, MatrixShape shape, int rows, const MachinePeaks& peaks);

/// One line: products of matrices of one type and shape with some rows, read from memory in turn.
/// A sample is `products` of them, each including the quantisation of its rows.
struct KernelResult {
  ggml_type type;
  MatrixShape shape;
  int rows = 0;
  int products = 0;
  Timing ours;                       ///< a sample
  Timing ggml;                       ///< a sample, in the faster form
  std::string ggml_form;             ///< "CPU", "CPU_REPACK"
  std::size_t packed_bytes = 0;      ///< of one matrix in our form
  std::size_t file_bytes = 0;        ///< of one matrix in the file
  double read_bytes_per_second = 0;  ///< the best read of memory beside these samples
  ProductLimit limit;                ///< of a sample, with that
  double other_load_cores = 0;       ///< that other programs took meanwhile

  double ratio() const { return ggml.best / ours.best; }
  double bytes_per_second() const {
    return static_cast<double>(packed_bytes) * products / ours.best;
  }
  double fraction_of_limit() const { return limit.seconds() / ours.best; }
};

struct KernelBenchOptions {
  std::vector<ggml_type> types;
  std::vector<MatrixShape> shapes;
  std::vector<int> rows;
};

/// Measures every combination but those of types whose blocks do not divide the inputs, ours and
/// ggml's in turn, each on as many threads as the pool has. `on_result` is told of each as soon as
/// it is known.
std::vector<KernelResult> bench_kernels(const KernelBenchOptions& options, const Kernels& kernels,
                                        ThreadPool& pool, const MachinePeaks& peaks,
                                        const std::function<void(const KernelResult&)>& on_result);

/// RMS of the difference between our product and ggml's in every form that it has, over the RMS of
/// ggml's: the greatest. Shows that both do the same work.
double difference_from_ggml(ggml_type type, MatrixShape shape, int rows, const Kernels& kernels,
                            ThreadPool& pool);

/// The peaks in one line, and the heads of the columns; then a line for each result.
std::string kernel_table_head(const MachinePeaks& peaks);
std::string kernel_table_line(const KernelResult& result);

nlohmann::ordered_json kernel_json(nlohmann::ordered_json machine,
                                   std::span<const KernelResult> results);

}  // namespace firp
