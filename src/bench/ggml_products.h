#pragma once

#include <ggml-backend.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/gguf_file.h"

namespace firp {

/// ggml's products of a matrix with some rows on the CPU, in one of the forms in which it can hold
/// the weights: what our products are held against.
class GgmlProducts {
 public:
  /// The forms that ggml has for this matrix: as in the file, and those of the CPU's extra buffer
  /// types (repacked for its matrix kernels) that take it.
  static std::vector<ggml_backend_buffer_type_t> forms(const Tensor& matrix);

  /// Holds `copies` of the matrix in memory of their own.
  GgmlProducts(const Tensor& matrix, int copies, ggml_backend_buffer_type_t form, int threads);
  ~GgmlProducts();
  GgmlProducts(GgmlProducts&&) noexcept;

  std::string form() const;  ///< "CPU", "CPU_REPACK", ...

  /// Sets the inputs [rows x inputs], and how many products compute() makes: with each copy in
  /// turn.
  void prepare(std::span<const float> x, int rows, int products);
  void compute();
  /// Of the last product: [rows x outputs].
  std::vector<float> result() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace firp
