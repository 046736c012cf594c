#pragma once

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "kernels/kernels.h"

namespace firp {

/// All outputs of w for all rows of x; NaN where nothing was written.
inline std::vector<float> product(const Kernels& kernels, const PackedMatrix& w,
                                  const Activations& x) {
  std::vector<float> y(static_cast<std::size_t>(x.rows()) * w.outputs(),
                       std::numeric_limits<float>::quiet_NaN());
  kernels.matmul({.weights = w,
                  .first_block = 0,
                  .end_block = w.blocks(),
                  .y = y.data(),
                  .y_stride = static_cast<std::size_t>(w.outputs())},
                 x);
  return y;
}

/// RMS of a - b, over that of b.
inline double relative_difference(std::span<const float> a, std::span<const float> b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(a[i] - b[i], 2);
    size += std::pow(b[i], 2);
  }
  return std::sqrt(difference / size);
}

}  // namespace firp
