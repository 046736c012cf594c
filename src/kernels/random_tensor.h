#pragma once

#include <ggml.h>

#include <cstddef>
#include <random>
#include <utility>
#include <vector>

#include "model/gguf_file.h"
#include "model/tensor_types.h"

namespace firp {

/// A matrix of a GGUF type for the tests and the benchmark, quantised by ggml from normal values.
class RandomTensor {
 public:
  RandomTensor(ggml_type type, int outputs, int inputs, unsigned seed)
      : bytes_(ggml_row_size(type, inputs) * outputs) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<std::size_t>(outputs) * inputs);
    for (float& value : values) value = normal(generator);
    ggml_quantize_chunk(type, values.data(), bytes_.data(), 0, outputs, inputs, nullptr);
    tensor_ = Tensor{.name = "random", .type = type, .shape = {inputs, outputs, 1, 1}};
    tensor_.data = bytes_;
  }
  RandomTensor(const RandomTensor&) = delete;
  RandomTensor& operator=(const RandomTensor&) = delete;

  const Tensor& tensor() const { return tensor_; }
  std::vector<std::byte>& bytes() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
  Tensor tensor_;
};

}  // namespace firp
