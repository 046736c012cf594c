#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "model/gguf_file.h"
#include "model/tensor_types.h"

namespace firp {

/// Outputs are packed in blocks of this many: a 512-bit vector of 32-bit lanes.
inline constexpr int kBlockOutputs = 16;

/// Memory for weights and activations, all zero at first: aligned to 64 bytes, in huge pages where
/// it is large and the system has them. A page is taken from the system when it is first written,
/// near the core that writes it.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::size_t size);
  /// The first `size` > 0 bytes of an open file, to be read only, all brought into memory. nullopt
  /// where they cannot be mapped. The file may be closed, or replaced by another, but not changed.
  static std::optional<AlignedBytes> map(int file, std::size_t size);
  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(std::byte* pointer) const;
  };
  std::unique_ptr<std::byte, Unmap> data_;
  std::size_t size_ = 0;
};

/// How a packed matrix stores its weights; the product with an activation is what every instruction
/// set computes from it. docs/kernels.md draws the layout.
struct PackedFormat : TensorType {
  std::size_t index = 0;  ///< in kTensorTypes

  constexpr bool sub_scales() const { return scale == ScaleKind::kF16TimesByte; }
  constexpr int cell_inputs() const { return sub_scales() ? 256 : 64; }
  /// The parts of a quarter, 16 outputs x 64 inputs. Low codes and high bits are those of two
  /// halves of 32 inputs.
  constexpr int low_bytes() const { return bits == 8 ? 1024 : bits >= 4 ? 512 : 256; }
  constexpr int high_bytes() const { return bits == 6 ? 256 : bits == 5 || bits == 3 ? 128 : 0; }
  constexpr int scale_bytes() const { return scale == ScaleKind::kF16 ? 2 : 1; }  ///< of one output
  constexpr int group_scale_bytes() const { return kBlockOutputs * scale_bytes(); }  ///< of a group
  constexpr int quarter_bytes() const {
    return low_bytes() + high_bytes() + 64 / group * (has_min ? 2 : 1) * group_scale_bytes();
  }
  /// Sub-scaled cells begin with their 16 F16 scales and 16 F16 mins.
  constexpr int header_bytes() const { return sub_scales() ? 64 : 0; }
  constexpr int cell_bytes() const {
    if (kind == WeightKind::kCodes) return header_bytes() + cell_inputs() / 64 * quarter_bytes();
    return kBlockOutputs * 64 * (kind == WeightKind::kF32 ? 4 : 2);
  }
};

/// Raised whenever packed bytes come to mean something else: files of them are then made anew.
inline constexpr int kPackedLayout = 2;

/// The packed form of a type. Gone once compiled, so that no instruction set's object has a copy.
template <ggml_type kType>
consteval PackedFormat packed_format() {
  constexpr std::size_t kIndex = tensor_type_index(kType);
  return {kTensorTypes[kIndex], kIndex};
}

/// The same; an Error that lists all types where it has none.
PackedFormat packed_format(ggml_type type);

/// A weight matrix, repacked so that a product reads one stream front to back: blocks of 16
/// outputs, each a run of cells along the inputs, each cell its codes and their scales and mins.
/// The number of outputs is padded to a multiple of 16 and inputs to one of 64, with zero weights.
class PackedMatrix {
 public:
  PackedMatrix() = default;

  /// Packs `tensor`, [outputs() x inputs()], into memory of its own. An Error where it cannot be a
  /// matrix.
  explicit PackedMatrix(const Tensor& tensor);
  /// A matrix to be packed, by pack(), into `memory`: packed_bytes() zero bytes, aligned to 64,
  /// that outlive it. With the weights of `tensor`, in `type`.
  PackedMatrix(const Tensor& tensor, ggml_type type, std::byte* memory);

  static std::size_t packed_bytes(const Tensor& tensor, ggml_type type);

  /// Packs the blocks begin .. end - 1 of a tensor of the matrix's type and shape. Calls for
  /// different blocks may run at once.
  void pack(const Tensor& tensor, int begin, int end);

  const PackedFormat& format() const { return format_; }
  int outputs() const { return outputs_; }
  int inputs() const { return inputs_; }
  int blocks() const { return (outputs_ + kBlockOutputs - 1) / kBlockOutputs; }
  int cells() const { return (inputs_ + format_.cell_inputs() - 1) / format_.cell_inputs(); }
  std::size_t block_bytes() const { return block_bytes_; }
  std::size_t bytes() const { return blocks() * block_bytes_; }
  const std::byte* block(int index) const { return bytes_ + index * block_bytes_; }

  /// The same matrix, or its first outputs, in this one's memory, which must outlive it.
  PackedMatrix view() const { return first_outputs(outputs_); }
  PackedMatrix first_outputs(int count) const;

 private:
  PackedFormat format_{};
  int outputs_ = 0;
  int inputs_ = 0;
  std::size_t block_bytes_ = 0;
  std::byte* bytes_ = nullptr;
  AlignedBytes own_;
};

/// A matrix to be packed: values [outputs x inputs], rounded to a type whose blocks divide the
/// inputs.
struct MatrixOfValues {
  PackedMatrix* packed;
  std::span<const float> values;
  int outputs, inputs;
  ggml_type type;
};

/// Packs matrices one behind the other into the memory that this gives, which must outlive them. In
/// memory of its own each small one would lie in pages of 4 KiB, and a pass that comes to them with
/// cold caches waits longer for the addresses of those pages than for the weights.
[[nodiscard]] AlignedBytes pack_values(std::span<const MatrixOfValues> matrices);

}  // namespace firp
