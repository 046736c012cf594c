#pragma once

#include <ggml.h>

#include <cstddef>
#include <string>
#include <vector>

#include "model/gguf_file.h"

namespace firp {

/// A matrix of random weights, for speed alone: a few normal rows, quantised by ggml and repeated,
/// so that a large one is there at once. An Error where a row is no multiple of the type's blocks.
class RandomWeights {
 public:
  /// [outputs x inputs], weights of mean 0 and the given standard deviation.
  RandomWeights(std::string name, ggml_type type, int outputs, int inputs, float deviation,
                unsigned seed);
  RandomWeights(RandomWeights&&) = default;

  const Tensor& tensor() const { return tensor_; }

 private:
  std::vector<std::byte> bytes_;
  Tensor tensor_;  // its data are bytes_: they stay where they are when this is moved
};

/// The accepted type of that name ("q4_0", "Q4_K", "bf16", ...); an Error that lists them.
ggml_type parse_matrix_type(std::string_view name);

/// Whether rows of `inputs` weights divide into the type's blocks.
bool has_whole_blocks(ggml_type type, int inputs);

/// An Error where rows of `inputs` weights do not divide into the type's blocks.
void require_whole_blocks(ggml_type type, int inputs);

}  // namespace firp
