#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "model/gguf_file.h"

namespace firp {

/// Outputs are packed in blocks of this many: a 512-bit vector of 32-bit lanes.
inline constexpr int kBlockOutputs = 16;

/// Memory for weights and activations: aligned to 64 bytes, huge pages asked for where large.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t size);
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* pointer) const;
  };
  std::unique_ptr<std::byte, Free> data_;
  std::size_t size_ = 0;
};

/// How a packed matrix stores its weights. The value of a weight is scale * code + min, exactly the
/// file's value; the product with an activation is what every instruction set computes from it.
enum class CodeKind { kFourBit, kEightBit, kF16, kBF16, kF32 };

struct PackedFormat {
  CodeKind codes;
  int group = 0;             ///< inputs that share a scale: 16 or 32; 0 for floats
  bool wide_scales = false;  ///< scales (and mins) are F32 instead of F16
  bool has_min = false;
  int zero = 0;  ///< code that means 0 (kFourBit; kEightBit always stores code + 128)

  std::size_t cell_bytes() const;  ///< bytes of one cell: 16 outputs x 64 inputs with their scales
};

/// The packed form of every GGUF type that we accept; an Error that lists them for any other.
PackedFormat packed_format(ggml_type type);

/// A weight matrix, repacked so that a product reads one stream front to back: blocks of 16
/// outputs, each a run of cells along the inputs, each cell its codes and then their scales and
/// mins. The number of outputs is padded to a multiple of 16 and inputs to one of 64, with zero
/// weights.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  /// `tensor`: [rows() outputs x columns() inputs].
  explicit PackedMatrix(const Tensor& tensor);

  const PackedFormat& format() const { return format_; }
  int outputs() const { return outputs_; }
  int inputs() const { return inputs_; }
  int blocks() const { return (outputs_ + kBlockOutputs - 1) / kBlockOutputs; }
  int cells() const { return (inputs_ + 63) / 64; }  ///< per block
  std::size_t bytes() const { return data_.size(); }
  const std::byte* block(int index) const {
    return data_.data() + static_cast<std::size_t>(index) * cells() * format_.cell_bytes();
  }

 private:
  PackedFormat format_{};
  int outputs_ = 0;
  int inputs_ = 0;
  AlignedBytes data_;
};

}  // namespace firp
