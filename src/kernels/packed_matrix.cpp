#include "kernels/packed_matrix.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <new>

#include "model/error.h"

namespace firp {
namespace {

constexpr int kCellInputs = 64;

struct TypeFormat {
  ggml_type type;
  PackedFormat format;
};

constexpr TypeFormat kFormats[] = {
    {GGML_TYPE_F32, {.codes = CodeKind::kF32}},
    {GGML_TYPE_F16, {.codes = CodeKind::kF16}},
    {GGML_TYPE_BF16, {.codes = CodeKind::kBF16}},
    {GGML_TYPE_Q4_0, {.codes = CodeKind::kFourBit, .group = 32, .zero = 8}},
    {GGML_TYPE_Q4_1, {.codes = CodeKind::kFourBit, .group = 32, .has_min = true}},
    {GGML_TYPE_Q5_0, {.codes = CodeKind::kEightBit, .group = 32, .zero = 128}},
    {GGML_TYPE_Q5_1, {.codes = CodeKind::kEightBit, .group = 32, .has_min = true, .zero = 128}},
    {GGML_TYPE_Q8_0, {.codes = CodeKind::kEightBit, .group = 32, .zero = 128}},
    {GGML_TYPE_Q2_K,
     {.codes = CodeKind::kFourBit, .group = 16, .wide_scales = true, .has_min = true}},
    {GGML_TYPE_Q3_K, {.codes = CodeKind::kFourBit, .group = 16, .wide_scales = true, .zero = 4}},
    {GGML_TYPE_Q4_K,
     {.codes = CodeKind::kFourBit, .group = 32, .wide_scales = true, .has_min = true}},
    {GGML_TYPE_Q5_K,
     {.codes = CodeKind::kEightBit,
      .group = 32,
      .wide_scales = true,
      .has_min = true,
      .zero = 128}},
    {GGML_TYPE_Q6_K, {.codes = CodeKind::kEightBit, .group = 16, .wide_scales = true, .zero = 128}},
};

/// 64 weights of one output: weight i is scales[i / group] * codes[i] + mins[i / group].
struct Weights64 {
  int codes[kCellInputs];  ///< from 0 for four bits, signed for eight
  float scales[4];
  float mins[4];
};

float half(const std::uint8_t* at) {
  ggml_fp16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return ggml_fp16_to_fp32(bits);
}

/// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 (ggml-common.h: block_q4_0 ...): group `g` of the cell from one
/// block of 32.
void read_block32(ggml_type type, const std::uint8_t* block, int g, Weights64& out) {
  int* const codes = out.codes + 32 * g;
  const bool has_min = type == GGML_TYPE_Q4_1 || type == GGML_TYPE_Q5_1;
  out.scales[g] = half(block);
  out.mins[g] = has_min ? half(block + 2) : 0.0f;
  const std::uint8_t* at = block + (has_min ? 4 : 2);
  if (type == GGML_TYPE_Q8_0) {
    for (int i = 0; i < 32; ++i) codes[i] = static_cast<std::int8_t>(at[i]);
    return;
  }
  std::uint32_t fifth_bits = 0;
  if (type == GGML_TYPE_Q5_0 || type == GGML_TYPE_Q5_1) {
    std::memcpy(&fifth_bits, at, 4);
    at += 4;
  }
  const int zero = type == GGML_TYPE_Q5_0 ? 16 : 0;
  for (int i = 0; i < 16; ++i) {
    codes[i] = static_cast<int>((at[i] & 15) | (fifth_bits >> i & 1) << 4) - zero;
    codes[i + 16] = static_cast<int>(at[i] >> 4 | (fifth_bits >> (i + 16) & 1) << 4) - zero;
  }
}

/// Sub-scale and sub-min `i` of Q4_K and Q5_K: eight of six bits each in 12 bytes.
struct SubScale {
  int scale, min;
};
SubScale sub_scale(const std::uint8_t* packed, int i) {
  if (i < 4) return {packed[i] & 63, packed[i + 4] & 63};
  return {(packed[i + 4] & 15) | (packed[i - 4] >> 6) << 4, packed[i + 4] >> 4 | (packed[i] >> 6)
                                                                                     << 4};
}

/// Quarter `quarter` (64 weights) of a block of 256 (block_q2_K ... block_q6_K).
void read_quarter(ggml_type type, const std::uint8_t* block, int quarter, Weights64& out) {
  switch (type) {
    case GGML_TYPE_Q4_K:
    case GGML_TYPE_Q5_K: {  // d, dmin, scales[12], (qh[32],) qs[128]
      const bool five = type == GGML_TYPE_Q5_K;
      const std::uint8_t* const high = block + 16;
      const std::uint8_t* const low = block + (five ? 48 : 16) + 32 * quarter;
      for (int i = 0; i < 32; ++i) {
        out.codes[i] = low[i] & 15;
        out.codes[i + 32] = low[i] >> 4;
        if (five) {
          out.codes[i] |= (high[i] >> (2 * quarter) & 1) << 4;
          out.codes[i + 32] |= (high[i] >> (2 * quarter + 1) & 1) << 4;
        }
      }
      for (int g = 0; g < 2; ++g) {
        const SubScale sub = sub_scale(block + 4, 2 * quarter + g);
        out.scales[g] = half(block) * static_cast<float>(sub.scale);
        out.mins[g] = -half(block + 2) * static_cast<float>(sub.min);
      }
      return;
    }
    case GGML_TYPE_Q2_K: {  // scales[16], qs[64], d, dmin
      const std::uint8_t* const low = block + 16 + 32 * (quarter / 2);
      for (int i = 0; i < 64; ++i) {
        out.codes[i] = low[i % 32] >> (2 * (2 * (quarter % 2) + i / 32)) & 3;
      }
      for (int g = 0; g < 4; ++g) {
        const int sub = block[4 * quarter + g];
        out.scales[g] = half(block + 80) * static_cast<float>(sub & 15);
        out.mins[g] = -half(block + 82) * static_cast<float>(sub >> 4);
      }
      return;
    }
    case GGML_TYPE_Q3_K: {  // hmask[32], qs[64], scales[12], d
      const std::uint8_t* const low = block + 32 + 32 * (quarter / 2);
      for (int i = 0; i < 64; ++i) {
        const int j = 2 * (quarter % 2) + i / 32;
        out.codes[i] = (low[i % 32] >> (2 * j) & 3) | (block[i % 32] >> (4 * (quarter / 2) + j) & 1)
                                                          << 2;
      }
      const std::uint8_t* const scales = block + 96;
      for (int g = 0; g < 4; ++g) {
        const int i = 4 * quarter + g;
        const int sub = (i < 8 ? scales[i] & 15 : scales[i - 8] >> 4) |
                        (scales[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
        out.scales[g] = half(block + 108) * static_cast<float>(sub - 32);
        out.mins[g] = 0.0f;
      }
      return;
    }
    default: {  // Q6_K: ql[128], qh[64], scales[16], d
      const std::uint8_t* const low = block + 64 * (quarter / 2);
      const std::uint8_t* const high = block + 128 + 32 * (quarter / 2);
      for (int i = 0; i < 64; ++i) {
        const int j = 2 * (quarter % 2) + i / 32;
        const int nibble = j < 2 ? low[32 * j + i % 32] & 15 : low[32 * (j - 2) + i % 32] >> 4;
        out.codes[i] = (nibble | (high[i % 32] >> (2 * j) & 3) << 4) - 32;
      }
      for (int g = 0; g < 4; ++g) {
        const auto sub = static_cast<std::int8_t>(block[192 + 4 * quarter + g]);
        out.scales[g] = half(block + 208) * static_cast<float>(sub);
        out.mins[g] = 0.0f;
      }
      return;
    }
  }
}

/// Inputs 64 cell .. 64 cell + 63 of a row; beyond the row's end codes, scales and mins are zero.
void read_weights(ggml_type type, const std::uint8_t* row, int inputs, int cell, Weights64& out) {
  if (ggml_blck_size(type) == 256) {
    return read_quarter(type, row + static_cast<std::size_t>(cell / 4) * ggml_type_size(type),
                        cell % 4, out);
  }
  for (int g = 0; g < 2; ++g) {
    const int block = 2 * cell + g;
    if (32 * block < inputs) {
      read_block32(type, row + static_cast<std::size_t>(block) * ggml_type_size(type), g, out);
    } else {
      std::fill_n(out.codes + 32 * g, 32, 0);
      out.scales[g] = out.mins[g] = 0.0f;
    }
  }
}

void write_scales(const float* values, int groups, bool wide, std::uint8_t* at, int output) {
  for (int g = 0; g < groups; ++g) {
    if (wide) {
      std::memcpy(at + 4 * (kBlockOutputs * g + output), values + g, 4);
    } else {
      const ggml_fp16_t bits = ggml_fp32_to_fp16(values[g]);
      std::memcpy(at + 2 * (kBlockOutputs * g + output), &bits, 2);
    }
  }
}

/// Writes one output's part of a cell.
void write_cell(const PackedFormat& format, const Weights64& weights, std::uint8_t* cell,
                int output) {
  const bool four = format.codes == CodeKind::kFourBit;
  for (int i = 0; i < kCellInputs; ++i) {
    const int part = i / 32, k = i % 32;
    if (four) {
      // Vector 4 part + v, byte b: input 4 v + b in the low and 16 + 4 v + b in the high nibble.
      std::uint8_t& byte = cell[64 * (4 * part + k % 16 / 4) + 4 * output + k % 4];
      byte = static_cast<std::uint8_t>(k < 16 ? weights.codes[i] : byte | weights.codes[i] << 4);
    } else {
      cell[64 * (8 * part + k / 4) + 4 * output + k % 4] =
          static_cast<std::uint8_t>(weights.codes[i] + 128);
    }
  }
  const int groups = kCellInputs / format.group;
  const std::size_t scale_bytes = format.wide_scales ? 4 : 2;
  std::uint8_t* const scales = cell + (four ? 512 : 1024);
  write_scales(weights.scales, groups, format.wide_scales, scales, output);
  if (format.has_min) {
    write_scales(weights.mins, groups, format.wide_scales,
                 scales + scale_bytes * kBlockOutputs * groups, output);
  }
}

}  // namespace

AlignedBytes::AlignedBytes(std::size_t size) : size_(size) {
  // Two megabytes: what the system can map as one huge page.
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const std::size_t alignment = size >= kHugePage ? kHugePage : 64;
  const std::size_t rounded =
      (std::max<std::size_t>(size, 1) + alignment - 1) / alignment * alignment;
  data_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, rounded)));
  if (!data_) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  if (alignment == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
#endif
  std::memset(data_.get(), 0, rounded);
}

void AlignedBytes::Free::operator()(std::byte* pointer) const { std::free(pointer); }

std::size_t PackedFormat::cell_bytes() const {
  constexpr std::size_t kWeights = std::size_t{kBlockOutputs} * kCellInputs;
  switch (codes) {
    case CodeKind::kF32:
      return kWeights * 4;
    case CodeKind::kF16:
    case CodeKind::kBF16:
      return kWeights * 2;
    default:
      break;
  }
  const std::size_t code_bytes = codes == CodeKind::kFourBit ? kWeights / 2 : kWeights;
  return code_bytes + kWeights / group * (wide_scales ? 4 : 2) * (has_min ? 2 : 1);
}

PackedFormat packed_format(ggml_type type) {
  std::string accepted;
  for (const TypeFormat& each : kFormats) {
    if (each.type == type) return each.format;
    accepted += fmt::format("{}{}", accepted.empty() ? "" : ", ", ggml_type_name(each.type));
  }
  throw Error(fmt::format("weights of type {} are not supported (supported: {})",
                          ggml_type_name(type), accepted));
}

PackedMatrix::PackedMatrix(const Tensor& tensor) : format_(packed_format(tensor.type)) {
  const std::int64_t columns = tensor.columns();
  const std::int64_t rows = tensor.rows();
  // A tensor of one row is what GGUF makes of a vector.
  if (columns < 1 || rows < 2 || tensor.shape[2] != 1 || tensor.shape[3] != 1 ||
      std::max(columns, rows) > INT_MAX - kCellInputs ||
      columns % ggml_blck_size(tensor.type) != 0 ||
      tensor.data.size() / ggml_row_size(tensor.type, columns) < static_cast<std::size_t>(rows)) {
    throw Error(fmt::format("tensor {} cannot be a matrix of {} x {} {}", tensor.name, rows,
                            columns, ggml_type_name(tensor.type)));
  }
  outputs_ = static_cast<int>(rows);
  inputs_ = static_cast<int>(columns);
  data_ = AlignedBytes(static_cast<std::size_t>(blocks()) * cells() * format_.cell_bytes());
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(tensor.data.data());
  const std::size_t row_bytes = ggml_row_size(tensor.type, inputs_);
  const bool floats = format_.group == 0;
  const std::size_t element = floats ? ggml_type_size(tensor.type) : 0;
  Weights64 weights{};
  for (int output = 0; output < outputs_; ++output) {
    const std::uint8_t* const row = bytes + output * row_bytes;
    auto* cell = reinterpret_cast<std::uint8_t*>(data_.data()) +
                 static_cast<std::size_t>(output / kBlockOutputs) * cells() * format_.cell_bytes();
    const int lane = output % kBlockOutputs;
    if (floats) {
      for (int i = 0; i < inputs_; ++i) {
        std::memcpy(cell + (static_cast<std::size_t>(i) * kBlockOutputs + lane) * element,
                    row + i * element, element);
      }
      continue;
    }
    for (int c = 0; c < cells(); ++c, cell += format_.cell_bytes()) {
      read_weights(tensor.type, row, inputs_, c, weights);
      write_cell(format_, weights, cell, lane);
    }
  }
}

}  // namespace firp
