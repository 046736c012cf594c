#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/packed_matrix.h"

namespace firp {

using Half = std::uint16_t;  ///< bits of an IEEE binary16

/// Positions in one page of the KV cache, and in one attention block; aligned to absolute position.
inline constexpr int kPagePositions = 64;

/// 32 inputs of a row, rounded to 8 bits with a common scale: value ~ code * scale. The sums are
/// what code offsets and mins are multiplied by: of inputs 0 .. 15, of 16 .. 31, and of all.
struct ActivationGroup {
  std::int8_t codes[32];
  float scale;
  std::int32_t sums[3];
  float scaled_sums[3];  ///< scale * sum
  std::int32_t padding;
};
static_assert(sizeof(ActivationGroup) == 64, "a group is a cache line");

/// Input rows of a product, in both forms that the packed formats read. Inputs are padded with
/// zeros to a multiple of 64.
///   values  [rows x stride]       F32
///   groups  [rows x stride / 32]
class Activations {
 public:
  Activations(int max_rows, int max_inputs);

  /// Sets the width of the rows that follow, and clears their padding.
  void resize(int rows, int inputs);
  int rows() const { return rows_; }
  int inputs() const { return inputs_; }
  int stride() const { return stride_; }

  float* values(int row) { return values_ + offset(row); }
  const float* values(int row) const { return values_ + offset(row); }
  ActivationGroup* groups(int row) { return groups_ + offset(row) / 32; }
  const ActivationGroup* groups(int row) const { return groups_ + offset(row) / 32; }

 private:
  std::size_t offset(int row) const { return static_cast<std::size_t>(row) * stride_; }
  AlignedBytes memory_;
  int rows_ = 0, inputs_ = 0, stride_ = 0;
  float* values_;
  ActivationGroup* groups_;
};

/// What one row's attention in one layer reads, for the query heads that share one KV head.
///
/// Keys of a page are transposed, [head_size][64], values are not, [64][head_size]; scratch pages
/// hold tree and pseudo rows in the same form (slot s is lane s % 64 of scratch page s / 64). The
/// pointers are to whole pages; a layer's and head's part begins `offset` halves into them, the
/// keys first and the values right behind (head_size * 64 halves each).
struct AttentionTask {
  const float* query;  ///< [group][head_size], after RoPE
  float* out;          ///< [group][head_size]
  int group;           ///< query heads per KV head
  int head_size;
  float scale;  ///< 1 / sqrt(head_size)
  std::size_t offset;

  std::span<const Half* const>
      pages;      ///< committed context: page b holds positions 64 b .. 64 b + 63
  int committed;  ///< positions 0 .. committed - 1 are read from `pages`
  std::span<const Half* const> scratch;
  /// Scratch slot of position committed + i; the last one is the row's own. kNoSlot: a pseudo row
  /// that does not exist in this layer; the position is not seen.
  std::span<const std::int32_t> slots;
};
inline constexpr std::int32_t kNoSlot = -1;

/// The arithmetic, for one instruction set. Every function gives bit-identical results for a row
/// whatever rows are beside it, however the work is split over calls and threads, and whether a
/// position's key and value lie in a page or in a scratch slot (docs/numerics.md).
struct Kernels {
  const char* isa;  ///< "avx512", "avx2", "portable"

  /// y[r][o] = sum_i x[r][i] w[o][i] for the outputs of blocks first_block .. end_block - 1 and all
  /// rows of `x` (w.inputs() == x.inputs()); y is [x.rows()][y_stride], indexed by output from the
  /// matrix's output 0. Never writes beyond w.outputs().
  void (*matmul)(const PackedMatrix& w, int first_block, int end_block, const Activations& x,
                 float* y, std::size_t y_stride);

  /// The groups of one row from its values (all `stride` of them).
  void (*quantize)(Activations& x, int row);

  /// out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i]
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int n, float* out);

  /// Turns the leading pairs of one head: angle k has cosine cosines[k] and sine sines[k].
  void (*rope)(float* head, const float* cosines, const float* sines, int pairs, bool interleaved);

  /// out[i] = silu(gate[i]) * up[i]
  void (*silu_multiply)(const float* gate, const float* up, int n, float* out);

  /// Rounds a key and a value head to F16 and stores them in lane `lane` of a page part
  /// (`page_part` = page + offset).
  void (*store_kv)(const float* key, const float* value, int head_size, Half* page_part, int lane);

  /// Softmax attention over a row's visible positions, in ascending order, in blocks of 64 aligned
  /// to absolute position.
  void (*attend)(const AttentionTask& task);
};

/// Instruction sets that this machine has, best first; "portable" is always the last.
std::vector<std::string> available_isas();

/// The kernels of one instruction set; an Error if this machine (or this build) has none by that
/// name, with the names that it has.
const Kernels& kernels(std::string_view isa);

/// The best set, or the one that the environment variable FIRP_ISA names.
const Kernels& default_kernels();

}  // namespace firp
