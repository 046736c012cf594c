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
  std::int32_t minus_sums[3];  ///< -sum
  float scaled_sums[3];        ///< scale * sum
  std::int32_t padding;
};
static_assert(sizeof(ActivationGroup) == 64, "a group is a cache line");

/// The forms of a product's input rows. Which one a matrix reads is up to the instruction set.
enum class ActivationForm { kValues, kGroups, kBf16 };

/// Input rows of a product, in the forms that packed formats read. Inputs are padded with zeros to
/// a multiple of 64; a group is 32 of them in every form.
///   values  [rows x stride]       F32
///   groups  [rows x stride / 32]
///   bf16    [rows x stride]       bits of bfloat16
class Activations {
 public:
  Activations(int max_rows, int max_inputs);

  /// Sets the width of the rows that follow, and clears their padding.
  void resize(int rows, int inputs);
  /// Rows first .. first + rows - 1, in this one's memory, which must outlive them.
  Activations some_rows(int first, int rows);
  int rows() const { return rows_; }
  int inputs() const { return inputs_; }
  int stride() const { return stride_; }
  int group_count() const { return stride_ / 32; }  ///< of a row

  float* values(int row) { return values_ + row * values_stride(); }
  const float* values(int row) const { return values_ + row * values_stride(); }
  ActivationGroup* groups(int row) { return groups_ + row * groups_stride(); }
  const ActivationGroup* groups(int row) const { return groups_ + row * groups_stride(); }
  std::uint16_t* bf16(int row) { return bf16_ + row * bf16_stride(); }
  const std::uint16_t* bf16(int row) const { return bf16_ + row * bf16_stride(); }

 private:
  Activations() = default;

  // A cache line from row to row beyond their width, which is often a multiple of 4 KiB: else the
  // lines that a tile reads at once, one of each row, would share one set of the cache.
  std::size_t values_stride() const { return stride_ + 16; }
  std::size_t groups_stride() const { return stride_ / 32 + 1; }
  std::size_t bf16_stride() const { return stride_ + 32; }

  AlignedBytes memory_;
  int rows_ = 0, inputs_ = 0, stride_ = 0;
  float* values_ = nullptr;
  ActivationGroup* groups_ = nullptr;
  std::uint16_t* bf16_ = nullptr;
};

/// Work is best divided in multiples of what the largest tiles of all instruction sets take at
/// once: blocks of a product, query heads of attention.
inline constexpr int kTileBlocks = 4;
inline constexpr int kTileHeads = 6;

/// A run of a product's outputs, in blocks, and what becomes of them.
struct ProductTask {
  const PackedMatrix& weights;
  int first_block, end_block;
  float* y;  ///< [rows][y_stride], indexed by output from the matrix's output 0
  std::size_t y_stride;
  bool add = false;  ///< y += instead of y =
  /// What this thread reads after this product: fetched to the cache in passing. nullptr: nothing.
  const std::byte* next = nullptr;
};

/// What keys and values are kept as: F16, or codes of 8 bits with a scale (F32) for each 32
/// elements of a head.
enum class CacheType { kF16, kQ8_0 };
constexpr ggml_type ggml_type_of(CacheType type) {
  return type == CacheType::kQ8_0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
}

/// A page's part: keys and values of 64 positions, for one layer and KV head.
///   F16   keys [head_size][64], values [64][head_size]
///   Q8_0  keys: codes [head_size][64], scales [groups][64]
///         values: [64]{ scales [groups], codes [groups][32] }, the last group filled up
struct PagePart {
  CacheType type;
  int head_size;

  int groups() const { return (head_size + 31) / 32; }
  /// Of all keys; the values begin behind them.
  std::size_t key_bytes() const {
    const auto positions = static_cast<std::size_t>(kPagePositions);
    if (type == CacheType::kF16) return positions * head_size * sizeof(Half);
    return positions * (head_size + groups() * sizeof(float));
  }
  /// Of one position.
  std::size_t value_bytes() const {
    if (type == CacheType::kF16) return head_size * sizeof(Half);
    return groups() * (sizeof(float) + 32);
  }
  std::size_t bytes() const { return key_bytes() + kPagePositions * value_bytes(); }
};

/// A query head of a row, and what the row sees beyond the committed context.
struct AttentionHead {
  const float* query;  ///< [head_size], after RoPE
  float* out;          ///< [head_size]
  /// Scratch slot of position committed + i; the last one is the row's own. kNoSlot: a pseudo row
  /// that does not exist in this layer; the position is not seen. Heads of a row have the same.
  std::span<const std::int32_t> slots;
};

/// Attention of rows of one sequence in one layer, for query heads that share a KV head; those of
/// a row stand together.
///
/// Scratch pages hold tree and pseudo rows in the same form as the context's (slot s is lane s % 64
/// of scratch page s / 64). The pointers are to whole pages; the part of the layer and head begins
/// `offset` bytes into them.
struct AttentionTask {
  std::span<const AttentionHead> heads;
  PagePart part;
  float scale;    ///< of the products of queries and keys
  float softcap;  ///< then a score s is softcap * tanh(s / softcap); 0: it stays
  int window;     ///< a row sees so many positions, the last of them its own; 0: all
  std::size_t offset;

  std::span<const std::byte* const>
      pages;      ///< committed context: page b holds positions 64 b .. 64 b + 63. Those that no
                  ///< row's window reaches are not looked at
  int committed;  ///< positions 0 .. committed - 1 are read from `pages`
  std::span<const std::byte* const> scratch;
};
inline constexpr std::int32_t kNoSlot = -1;

/// An output of the head and its value.
struct TokenLogit {
  std::int32_t token;
  float logit;
};

/// sum_i exp(x_i) = exp(largest) * sum
struct ExpSum {
  float largest, sum;
};

/// The arithmetic, for one instruction set. Every function gives bit-identical results for a row
/// whatever rows are beside it, however the work is split over calls and threads, and whether a
/// position's key and value lie in a page or in a scratch slot (docs/numerics.md).
struct Kernels {
  const char* isa;  ///< "avx512_amx" .. "avx2", "neon_i8mm" .. "neon", "portable"

  /// y[r][o] = sum_i x[r][i] w[o][i] for the outputs of the task's blocks and all rows of `x`
  /// (inputs() equal). Never writes beyond the matrix's outputs.
  void (*matmul)(const ProductTask& task, const Activations& x);

  /// The form that matmul reads with weights of this kind.
  ActivationForm (*form)(WeightKind kind);

  /// Makes a form of groups first .. end - 1 of a row from its values.
  void (*prepare)(Activations& x, int row, int first, int end, ActivationForm form);

  /// 1 / sqrt(mean(x^2) + epsilon)
  float (*inverse_rms)(const float* x, float epsilon, int n);

  /// out[i] = x[i] * scale * weight[i]; may be in place.
  void (*scale)(const float* x, float scale, const float* weight, int n, float* out);

  /// out[i] += x[i] * scale * weight[i]
  void (*add_scaled)(const float* x, float scale, const float* weight, int n, float* out);

  /// Turns the leading `n` elements of a head, pairs of neighbours (interleaved) or (k, k + n / 2).
  /// cosines, sines: [n / 2].
  void (*rope)(float* head, const float* cosines, const float* sines, int n, bool interleaved);

  /// out[i] = silu(gate[i]) * up[i]
  void (*silu_multiply)(const float* gate, const float* up, int n, float* out);
  /// out[i] = gelu(gate[i]) * up[i], gelu in its form with tanh
  void (*gelu_multiply)(const float* gate, const float* up, int n, float* out);

  /// x[i] = cap * tanh(x[i] / cap)
  void (*soft_cap)(float* x, float cap, int n);

  /// Rounds a key and a value head and stores them in lane `lane` of the page part at `to`.
  void (*store_kv)(const float* key, const float* value, const PagePart& part, std::byte* to,
                   int lane);

  /// Softmax attention over each row's visible positions, in ascending order, in blocks of 64
  /// aligned to absolute position.
  void (*attend)(const AttentionTask& task);

  /// Enters the logits of tokens first .. first + n - 1 into `best`, the most probable `count` so
  /// far, in descending order (of equal ones the smaller token first). NaNs are left out.
  void (*select_best)(const float* logits, int n, int first, TokenLogit* best, int& size,
                      int count);

  float (*dot)(const float* a, const float* b, int n);

  /// Of the logits that are numbers.
  ExpSum (*sum_exp)(const float* logits, int n);
};

/// Instruction sets that this machine has, best first; "portable" is always the last.
std::vector<std::string> available_isas();

/// The kernels of one instruction set; an Error if this machine (or this build) has none by that
/// name, with the names that it has.
const Kernels& kernels(std::string_view isa);

/// The best set, or the one that the environment variable FIRP_ISA names.
const Kernels& default_kernels();

}  // namespace firp
