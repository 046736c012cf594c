#include "kernels/packed_matrix.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "model/error.h"

namespace firp {
namespace {

/// 64 weights of one output, as codes that count from 0, with scale and min of each group: the
/// file's F16 bits, or its bytes where the format has sub-scales.
struct Quarter {
  std::uint8_t codes[64];
  std::uint16_t scales[4];
  std::uint16_t mins[4];
};

std::uint16_t bits16(const std::uint8_t* at) {
  std::uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}

/// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 (ggml-common.h: block_q4_0 ...): group `g` of the quarter from one
/// block of 32.
void read_block32(const PackedFormat& format, const std::uint8_t* block, int g, Quarter& out) {
  std::uint8_t* const codes = out.codes + 32 * g;
  out.scales[g] = bits16(block);
  out.mins[g] = format.has_min ? bits16(block + 2) : 0;
  const std::uint8_t* at = block + (format.has_min ? 4 : 2);
  if (format.bits == 8) {
    for (int i = 0; i < 32; ++i) codes[i] = at[i] ^ 0x80;
    return;
  }
  std::uint32_t fifth_bits = 0;
  if (format.bits == 5) {
    std::memcpy(&fifth_bits, at, 4);
    at += 4;
  }
  for (int i = 0; i < 16; ++i) {
    codes[i] = static_cast<std::uint8_t>((at[i] & 15) | (fifth_bits >> i & 1) << 4);
    codes[i + 16] = static_cast<std::uint8_t>(at[i] >> 4 | (fifth_bits >> (i + 16) & 1) << 4);
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
void read_block256(ggml_type type, const std::uint8_t* block, int quarter, Quarter& out) {
  const auto set_groups = [&](int groups, auto scale_of, auto min_of) {
    for (int g = 0; g < groups; ++g) {
      out.scales[g] = static_cast<std::uint8_t>(scale_of(g));
      out.mins[g] = static_cast<std::uint8_t>(min_of(g));
    }
  };
  switch (type) {
    case GGML_TYPE_Q4_K:
    case GGML_TYPE_Q5_K: {  // d, dmin, scales[12], (qh[32],) qs[128]
      const bool five = type == GGML_TYPE_Q5_K;
      const std::uint8_t* const high = block + 16;
      const std::uint8_t* const low = block + (five ? 48 : 16) + 32 * quarter;
      for (int i = 0; i < 32; ++i) {
        out.codes[i] = low[i] & 15;
        out.codes[i + 32] = low[i] >> 4;
      }
      for (int i = 0; five && i < 32; ++i) {
        out.codes[i] |= (high[i] >> (2 * quarter) & 1) << 4;
        out.codes[i + 32] |= (high[i] >> (2 * quarter + 1) & 1) << 4;
      }
      const auto sub = [&](int g) { return sub_scale(block + 4, 2 * quarter + g); };
      return set_groups(
          2, [&](int g) { return sub(g).scale; }, [&](int g) { return sub(g).min; });
    }
    case GGML_TYPE_Q2_K: {  // scales[16], qs[64], d, dmin
      const std::uint8_t* const low = block + 16 + 32 * (quarter / 2);
      for (int j = 0; j < 2; ++j) {
        for (int i = 0; i < 32; ++i) {
          out.codes[32 * j + i] = low[i] >> (2 * (2 * (quarter % 2) + j)) & 3;
        }
      }
      const std::uint8_t* const sub = block + 4 * quarter;
      return set_groups(
          4, [&](int g) { return sub[g] & 15; }, [&](int g) { return sub[g] >> 4; });
    }
    case GGML_TYPE_Q3_K: {  // hmask[32], qs[64], scales[12], d
      const std::uint8_t* const low = block + 32 + 32 * (quarter / 2);
      for (int half = 0; half < 2; ++half) {
        const int j = 2 * (quarter % 2) + half;
        for (int i = 0; i < 32; ++i) {
          out.codes[32 * half + i] = static_cast<std::uint8_t>(
              (low[i] >> (2 * j) & 3) | (block[i] >> (4 * (quarter / 2) + j) & 1) << 2);
        }
      }
      const std::uint8_t* const packed = block + 96;
      const auto scale = [&](int g) {
        const int i = 4 * quarter + g;
        return ((i < 8 ? packed[i] & 15 : packed[i - 8] >> 4) |
                (packed[8 + i % 4] >> (2 * (i / 4)) & 3) << 4) -
               32;
      };
      return set_groups(4, scale, [](int) { return 0; });
    }
    default: {  // Q6_K: ql[128], qh[64], scales[16], d
      const std::uint8_t* const low = block + 64 * (quarter / 2);
      const std::uint8_t* const high = block + 128 + 32 * (quarter / 2);
      for (int half = 0; half < 2; ++half) {
        const int j = 2 * (quarter % 2) + half;
        for (int i = 0; i < 32; ++i) {
          const int nibble = j < 2 ? low[32 * j + i] & 15 : low[32 * (j - 2) + i] >> 4;
          out.codes[32 * half + i] =
              static_cast<std::uint8_t>(nibble | (high[i] >> (2 * j) & 3) << 4);
        }
      }
      const std::uint8_t* const sub = block + 192 + 4 * quarter;
      return set_groups(
          4, [&](int g) { return sub[g]; }, [](int) { return 0; });
    }
  }
}

/// The F16 scale and min of a block of 256.
struct BlockScale {
  std::uint16_t scale, min;
};
BlockScale block_scale(ggml_type type, const std::uint8_t* block) {
  constexpr std::uint16_t kSign = 0x8000;  // the file's min is taken off, ours is added
  switch (type) {
    case GGML_TYPE_Q4_K:
    case GGML_TYPE_Q5_K:
      return {bits16(block), static_cast<std::uint16_t>(bits16(block + 2) ^ kSign)};
    case GGML_TYPE_Q2_K:
      return {bits16(block + 80), static_cast<std::uint16_t>(bits16(block + 82) ^ kSign)};
    case GGML_TYPE_Q3_K:
      return {bits16(block + 108), 0};
    default:  // Q6_K
      return {bits16(block + 208), 0};
  }
}

/// Two bits of each code, from bit `shift` on, of a half of 32 inputs: byte b of output o of vector
/// p holds those of inputs 16 p + 4 s + b at its bits 2 s.
void write_planes(const std::uint8_t* codes, int shift, std::uint8_t* to, int output) {
  for (int p = 0; p < 2; ++p, codes += 16) {
    for (int b = 0; b < 4; ++b) {
      int byte = 0;
      for (int s = 0; s < 4; ++s) byte |= (codes[4 * s + b] >> shift & 3) << (2 * s);
      to[64 * p + 4 * output + b] = static_cast<std::uint8_t>(byte);
    }
  }
}

/// Writes one output's part of a quarter (docs/kernels.md).
void write_quarter(const PackedFormat& format, const Quarter& quarter, std::uint8_t* to,
                   int output) {
  const int low_bytes = format.low_bytes() / 2;  // of a half
  const int high_bytes = format.high_bytes() / 2;
  for (int half = 0; half < 2; ++half) {
    const std::uint8_t* const codes = quarter.codes + 32 * half;
    std::uint8_t* const low = to + half * low_bytes;
    std::uint8_t* const high = to + format.low_bytes() + half * high_bytes;
    if (format.bits == 8) {
      for (int v = 0; v < 8; ++v) std::memcpy(low + 64 * v + 4 * output, codes + 4 * v, 4);
    } else if (format.bits >= 4) {
      std::uint8_t bytes[16];
      for (int i = 0; i < 16; ++i) {
        bytes[i] = static_cast<std::uint8_t>((codes[i] & 15) | codes[i + 16] << 4);
      }
      for (int v = 0; v < 4; ++v) std::memcpy(low + 64 * v + 4 * output, bytes + 4 * v, 4);
    } else {
      write_planes(codes, 0, low, output);
    }
    if (format.bits == 6) {
      write_planes(codes, 4, high, output);
    } else if (format.high_bytes() > 0) {
      const int shift = format.bits - 1;
      for (int v = 0; v < 8; ++v) {
        int four = 0;
        for (int b = 0; b < 4; ++b) four |= (codes[4 * v + b] >> shift & 1) << b;
        high[8 * v + output / 2] |= static_cast<std::uint8_t>(four << (output % 2 * 4));
      }
    }
  }
  std::uint8_t* at = to + format.low_bytes() + format.high_bytes();
  for (const std::uint16_t* values : {quarter.scales, quarter.mins}) {
    if (values == quarter.mins && !format.has_min) break;
    for (int g = 0; g < 64 / format.group; ++g, at += format.scale_bytes()) {
      if (format.sub_scales) {
        at[output] = static_cast<std::uint8_t>(values[g]);
      } else {
        std::memcpy(at + 2 * output, values + g, 2);
      }
    }
  }
}

}  // namespace

AlignedBytes::AlignedBytes(std::size_t size) : size_(size) {
  // Two megabytes: what the system can map as one huge page, from an aligned address on.
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const bool huge = size >= kHugePage;
  const std::size_t bytes = std::max<std::size_t>(size, 1) + (huge ? kHugePage : 0);
  void* const memory =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* begin = static_cast<std::byte*>(memory);
  std::size_t kept = bytes;
  if (huge) {
    // Gives back what lies before the first aligned address.
    const std::size_t skip =
        (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
    if (skip > 0) munmap(begin, skip);
    begin += skip;
    kept -= skip;
#ifdef MADV_HUGEPAGE
    madvise(begin, kept, MADV_HUGEPAGE);
#endif
  }
  data_ = {begin, Unmap{kept}};
}

void AlignedBytes::Unmap::operator()(std::byte* pointer) const { munmap(pointer, bytes); }

PackedFormat packed_format(ggml_type type) {
  std::string accepted;
  for (const PackedFormat& format : kPackedFormats) {
    if (format.type == type) return format;
    accepted += fmt::format("{}{}", accepted.empty() ? "" : ", ", ggml_type_name(format.type));
  }
  throw Error(fmt::format("weights of type {} are not supported (supported: {})",
                          ggml_type_name(type), accepted));
}

std::size_t PackedMatrix::packed_bytes(const Tensor& tensor) {
  return PackedMatrix(tensor, nullptr).bytes();
}

PackedMatrix::PackedMatrix(const Tensor& tensor) : PackedMatrix(tensor, nullptr) {
  own_ = AlignedBytes(bytes());
  bytes_ = own_.data();
  pack(tensor, 0, blocks());
}

PackedMatrix::PackedMatrix(const Tensor& tensor, std::byte* memory)
    : format_(packed_format(tensor.type)), bytes_(memory) {
  const std::int64_t columns = tensor.columns();
  const std::int64_t rows = tensor.rows();
  // A tensor of one row is what GGUF makes of a vector.
  if (columns < 1 || rows < 2 || tensor.shape[2] != 1 || tensor.shape[3] != 1 ||
      std::max(columns, rows) > INT_MAX - 256 || columns % ggml_blck_size(tensor.type) != 0 ||
      tensor.data.size() / ggml_row_size(tensor.type, columns) < static_cast<std::size_t>(rows)) {
    throw Error(fmt::format("tensor {} cannot be a matrix of {} x {} {}", tensor.name, rows,
                            columns, ggml_type_name(tensor.type)));
  }
  outputs_ = static_cast<int>(rows);
  inputs_ = static_cast<int>(columns);
  block_bytes_ = static_cast<std::size_t>(cells()) * format_.cell_bytes();
}

void PackedMatrix::pack(const Tensor& tensor, int begin, int end) {
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(tensor.data.data());
  const std::size_t row_bytes = ggml_row_size(tensor.type, inputs_);
  const std::size_t source_block_bytes = ggml_type_size(tensor.type);
  const int end_output = std::min(end * kBlockOutputs, outputs_);
  for (int output = begin * kBlockOutputs; output < end_output; ++output) {
    const std::uint8_t* row = bytes + output * row_bytes;
    const int lane = output % kBlockOutputs;
    auto* cell = reinterpret_cast<std::uint8_t*>(bytes_) + output / kBlockOutputs * block_bytes_;
    if (format_.kind == WeightKind::kBF16) {  // pairs of inputs, as the dot product takes them
      for (int i = 0; i < inputs_; ++i) {
        std::memcpy(cell + std::size_t{64} * (i / 2) + 4 * lane + 2 * (i % 2), row + 2 * i, 2);
      }
      continue;
    }
    if (format_.kind != WeightKind::kCodes) {
      const std::size_t size = source_block_bytes;
      for (int i = 0; i < inputs_; ++i) {
        std::memcpy(cell + (static_cast<std::size_t>(i) * kBlockOutputs + lane) * size,
                    row + i * size, size);
      }
      continue;
    }
    Quarter quarter{};
    for (int c = 0; c < cells(); ++c, cell += format_.cell_bytes()) {
      if (format_.sub_scales) {
        const BlockScale scale = block_scale(tensor.type, row);
        std::memcpy(cell + 2 * lane, &scale.scale, 2);
        std::memcpy(cell + 2 * (kBlockOutputs + lane), &scale.min, 2);
        for (int q = 0; q < 4; ++q) {
          read_block256(tensor.type, row, q, quarter);
          write_quarter(format_, quarter,
                        cell + format_.header_bytes() + q * format_.quarter_bytes(), lane);
        }
        row += source_block_bytes;
        continue;
      }
      for (int g = 0; g < 2; ++g) {
        if (64 * c + 32 * g < inputs_) {
          read_block32(format_, row, g, quarter);
          row += source_block_bytes;
        } else {
          std::fill_n(quarter.codes + 32 * g, 32, std::uint8_t{0});
          quarter.scales[g] = quarter.mins[g] = 0;
        }
      }
      write_quarter(format_, quarter, cell, lane);
    }
  }
}

PackedMatrix pack_f16(std::span<const float> values, int outputs, int inputs) {
  std::vector<ggml_fp16_t> half(values.size());
  ggml_fp32_to_fp16_row(values.data(), half.data(), static_cast<std::int64_t>(values.size()));
  return PackedMatrix({.name = "F16 matrix",
                       .type = GGML_TYPE_F16,
                       .shape = {inputs, outputs, 1, 1},
                       .data = std::as_bytes(std::span(half))});
}

}  // namespace firp
