#include "kernels/packed_matrix.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "base/error.h"

namespace firp {
namespace {

std::uint16_t load16(const std::uint8_t* at) {
  std::uint16_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}
std::uint32_t load32(const std::uint8_t* at) {
  std::uint32_t bits;
  std::memcpy(&bits, at, sizeof bits);
  return bits;
}
void store16(std::uint8_t* at, std::uint16_t bits) { std::memcpy(at, &bits, sizeof bits); }
void store32(std::uint8_t* at, std::uint32_t bits) { std::memcpy(at, &bits, sizeof bits); }

// Codes are worked on four at a time, a byte each.

/// Bit b of the lowest four becomes the lowest bit of byte b.
constexpr std::uint32_t spread_bits(std::uint32_t bits) {
  return (bits & 15) * 0x00204081u & 0x01010101u;
}

/// The 32 codes, counted from 0, of a block of 32 weights, behind its scale and min (ggml-common.h:
/// block_q4_0 ...).
template <ggml_type kType>
void read_codes32(const std::uint8_t* at, std::uint8_t* codes) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  if constexpr (kFormat.bits == 8) {
    for (int i = 0; i < 32; i += 4) store32(codes + i, load32(at + i) ^ 0x80808080u);
    return;
  }
  std::uint32_t fifth_bits = 0;
  if constexpr (kFormat.bits == 5) {
    fifth_bits = load32(at);
    at += 4;
  }
  for (int i = 0; i < 16; i += 4) {
    const std::uint32_t pairs = load32(at + i);
    store32(codes + i, (pairs & 0x0f0f0f0fu) | spread_bits(fifth_bits >> i) << 4);
    store32(codes + i + 16, (pairs >> 4 & 0x0f0f0f0fu) | spread_bits(fifth_bits >> (i + 16)) << 4);
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

/// 64 weights of one output of a type with blocks of 256: codes that count from 0, and the bytes
/// that scale and shift each group.
struct Quarter {
  std::uint8_t codes[64];
  std::uint8_t scales[4];
  std::uint8_t mins[4];
};

/// Quarter `quarter` of a block of 256 (block_q2_K ... block_q6_K, block_iq4_xs).
template <ggml_type kType>
void read_block256(const std::uint8_t* block, int quarter, Quarter& out) {
  const auto set_groups = [&](int groups, auto scale_of, auto min_of) {
    for (int g = 0; g < groups; ++g) {
      out.scales[g] = static_cast<std::uint8_t>(scale_of(g));
      out.mins[g] = static_cast<std::uint8_t>(min_of(g));
    }
  };
  switch (kType) {
    case GGML_TYPE_Q4_K:
    case GGML_TYPE_Q5_K: {  // d, dmin, scales[12], (qh[32],) qs[128]
      constexpr bool five = kType == GGML_TYPE_Q5_K;
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
    case GGML_TYPE_IQ4_XS: {  // d, scales_h[2], scales_l[4], qs[128]
      const std::uint8_t* const pairs = block + 8 + 32 * quarter;
      for (int i = 0; i < 16; ++i) {
        for (int half = 0; half < 2; ++half) {
          out.codes[32 * half + i] = pairs[16 * half + i] & 15;
          out.codes[32 * half + i + 16] = pairs[16 * half + i] >> 4;
        }
      }
      const auto scale = [&](int g) {
        const int low = block[4 + quarter] >> (4 * g) & 15;
        const int high = load16(block + 2) >> (2 * (2 * quarter + g)) & 3;
        return (low | high << 4) - 32;
      };
      return set_groups(2, scale, [](int) { return 0; });
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
      return {load16(block), static_cast<std::uint16_t>(load16(block + 2) ^ kSign)};
    case GGML_TYPE_Q2_K:
      return {load16(block + 80), static_cast<std::uint16_t>(load16(block + 82) ^ kSign)};
    case GGML_TYPE_Q3_K:
      return {load16(block + 108), 0};
    case GGML_TYPE_IQ4_XS:
      return {load16(block), 0};
    default:  // Q6_K
      return {load16(block + 208), 0};
  }
}

/// kBits of each code, from bit `shift` on, of a half of 32 inputs: with s < 8 / kBits, byte b of
/// output o of plane p holds those of inputs 4 (8 / kBits p + s) + b at its bits kBits s.
template <int kBits>
void write_planes(const std::uint8_t* codes, int shift, std::uint8_t* to, int output) {
  constexpr std::uint32_t kMask = 0x01010101u * ((1 << kBits) - 1);
  for (int p = 0; p < kBits; ++p) {
    std::uint32_t planes = 0;
    for (int s = 0; s < 8 / kBits; ++s, codes += 4) {
      planes |= (load32(codes) >> shift & kMask) << (kBits * s);
    }
    store32(to + 64 * p + 4 * output, planes);
  }
}

/// Writes one output's 32 codes into half `half` of a quarter (docs/kernels.md).
template <ggml_type kType>
void write_codes(const std::uint8_t* codes, std::uint8_t* quarter, int half, int output) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  std::uint8_t* const low = quarter + half * kFormat.low_bytes() / 2;
  std::uint8_t* const high = quarter + kFormat.low_bytes() + half * kFormat.high_bytes() / 2;
  if constexpr (kFormat.bits == 8) {
    for (int v = 0; v < 8; ++v) store32(low + 64 * v + 4 * output, load32(codes + 4 * v));
  } else if constexpr (kFormat.bits >= 4) {
    for (int v = 0; v < 4; ++v) {
      store32(low + 64 * v + 4 * output, (load32(codes + 4 * v) & 0x0f0f0f0fu) |
                                             (load32(codes + 4 * v + 16) & 0x0f0f0f0fu) << 4);
    }
  } else {
    write_planes<2>(codes, 0, low, output);
  }
  if constexpr (kFormat.bits == 6) {
    write_planes<2>(codes, 4, high, output);
  } else if constexpr (kFormat.high_bytes() > 0) {
    write_planes<1>(codes, kFormat.bits - 1, high, output);
  }
}

/// Writes one output's part of a cell: its next `inputs` weights, at `from`.
template <ggml_type kType>
void pack_cell(const std::uint8_t* from, int inputs, std::uint8_t* cell, int output) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  constexpr int kAfterCodes = kFormat.low_bytes() + kFormat.high_bytes();
  if constexpr (kFormat.kind == WeightKind::kF32) {
    for (int i = 0; i < inputs; ++i) {
      store32(cell + 4 * (kBlockOutputs * i + output), load32(from + 4 * i));
    }
  } else if constexpr (kFormat.kind == WeightKind::kF16) {
    for (int i = 0; i < inputs; ++i) {
      store16(cell + 2 * (kBlockOutputs * i + output), load16(from + 2 * i));
    }
  } else if constexpr (kFormat.kind == WeightKind::kBF16) {
    for (int i = 0; i < inputs; ++i) {  // pairs of inputs, as the dot product takes them
      store16(cell + 64 * (i / 2) + 4 * output + 2 * (i % 2), load16(from + 2 * i));
    }
  } else if constexpr (kFormat.sub_scales()) {
    const BlockScale scale = block_scale(kType, from);
    store16(cell + 2 * output, scale.scale);
    store16(cell + 2 * (kBlockOutputs + output), scale.min);
    std::uint8_t* quarter = cell + kFormat.header_bytes();
    for (int q = 0; q < 4; ++q, quarter += kFormat.quarter_bytes()) {
      Quarter read;
      read_block256<kType>(from, q, read);
      write_codes<kType>(read.codes, quarter, 0, output);
      write_codes<kType>(read.codes + 32, quarter, 1, output);
      constexpr int kGroups = 64 / kFormat.group;
      for (int g = 0; g < kGroups; ++g) {
        std::uint8_t* const scales = quarter + kAfterCodes + g * kFormat.group_scale_bytes();
        scales[output] = read.scales[g];
        if (kFormat.has_min) scales[kGroups * kFormat.group_scale_bytes() + output] = read.mins[g];
      }
    }
  } else {
    constexpr int kScaleBytes = kFormat.scale_bytes();
    constexpr int kCodesAt = (kFormat.has_min ? 2 : 1) * kScaleBytes;
    for (int g = 0; g < inputs / 32; ++g, from += kCodesAt + 32 * kFormat.bits / 8) {
      std::uint8_t codes[32];
      read_codes32<kType>(from + kCodesAt, codes);
      write_codes<kType>(codes, cell, g, output);
      std::uint8_t* const scales = cell + kAfterCodes + g * kFormat.group_scale_bytes();
      std::memcpy(scales + kScaleBytes * output, from, kScaleBytes);
      if (kFormat.has_min) {
        std::memcpy(scales + 2 * kFormat.group_scale_bytes() + kScaleBytes * output,
                    from + kScaleBytes, kScaleBytes);
      }
    }
  }
}

/// Packs a block: `outputs` rows of `inputs` weights. What the last cell has beyond them stays
/// zero.
template <ggml_type kType>
void pack_block(const std::uint8_t* rows, int outputs, int inputs, std::uint8_t* cell) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  const std::size_t row_bytes = ggml_row_size(kType, inputs);
  const std::size_t cell_row_bytes = ggml_row_size(kType, kFormat.cell_inputs());
  for (int begin = 0; begin < inputs; begin += kFormat.cell_inputs()) {
    const int count = std::min(inputs - begin, kFormat.cell_inputs());
    for (int output = 0; output < outputs; ++output) {
      pack_cell<kType>(rows + output * row_bytes, count, cell, output);
    }
    rows += cell_row_bytes;
    cell += kFormat.cell_bytes();
  }
}

using PackBlock = void (*)(const std::uint8_t* rows, int outputs, int inputs, std::uint8_t* to);

/// Of kTensorTypes, in their order.
constexpr auto kPackBlocks = []<std::size_t... kTypes>(std::index_sequence<kTypes...>) {
  return std::array<PackBlock, sizeof...(kTypes)>{pack_block<kTensorTypes[kTypes].type>...};
}
(std::make_index_sequence<kTensorTypeCount>());

}  // namespace

AlignedBytes::AlignedBytes(std::size_t size) : size_(size) {
  // Two megabytes: what the system can map as one huge page, from an aligned address on.
  // Worth it from a part of one on.
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  const bool huge = size >= kHugePage / 8;
  const std::size_t pages = (size + kHugePage - 1) / kHugePage;
  const std::size_t bytes = huge ? (pages + 1) * kHugePage : std::max<std::size_t>(size, 1);
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

std::optional<AlignedBytes> AlignedBytes::map(int file, std::size_t size) {
  void* const memory = mmap(nullptr, size, PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0);
  if (memory == MAP_FAILED) return std::nullopt;
  AlignedBytes bytes;
  bytes.data_ = {static_cast<std::byte*>(memory), Unmap{size}};
  bytes.size_ = size;
  return bytes;
}

void AlignedBytes::Unmap::operator()(std::byte* pointer) const { munmap(pointer, bytes); }

PackedFormat packed_format(ggml_type type) {
  const std::size_t index = tensor_type_index(type);
  if (index < kTensorTypeCount) return {kTensorTypes[index], index};
  throw Error(fmt::format("weights of type {} are not supported (supported: {})",
                          ggml_type_name(type), tensor_type_names()));
}

std::size_t PackedMatrix::packed_bytes(const Tensor& tensor, ggml_type type) {
  return PackedMatrix(tensor, type, nullptr).bytes();
}

PackedMatrix::PackedMatrix(const Tensor& tensor) : PackedMatrix(tensor, tensor.type, nullptr) {
  own_ = AlignedBytes(bytes());
  bytes_ = own_.data();
  pack(tensor, 0, blocks());
}

PackedMatrix::PackedMatrix(const Tensor& tensor, ggml_type type, std::byte* memory)
    : format_(packed_format(type)), bytes_(memory) {
  const std::int64_t columns = tensor.columns();
  const std::int64_t rows = tensor.rows();
  // A tensor of one row is what GGUF makes of a vector.
  if (columns < 1 || rows < 2 || tensor.shape[2] != 1 || tensor.shape[3] != 1 ||
      std::max(columns, rows) > INT_MAX - 256 || columns % ggml_blck_size(tensor.type) != 0 ||
      columns % ggml_blck_size(type) != 0 ||
      tensor.data.size() / ggml_row_size(tensor.type, columns) < static_cast<std::size_t>(rows)) {
    throw Error(fmt::format("tensor {} cannot be a matrix of {} x {} {}", tensor.name, rows,
                            columns, ggml_type_name(tensor.type)));
  }
  outputs_ = static_cast<int>(rows);
  inputs_ = static_cast<int>(columns);
  block_bytes_ = static_cast<std::size_t>(cells()) * format_.cell_bytes();
}

void PackedMatrix::pack(const Tensor& tensor, int begin, int end) {
  const PackBlock pack_block = kPackBlocks[format_.index];
  const auto* const rows = reinterpret_cast<const std::uint8_t*>(tensor.data.data());
  const std::size_t row_bytes = ggml_row_size(tensor.type, inputs_);
  for (int block = begin; block < end; ++block) {
    const int first = block * kBlockOutputs;
    pack_block(rows + first * row_bytes, std::min(kBlockOutputs, outputs_ - first), inputs_,
               reinterpret_cast<std::uint8_t*>(bytes_) + block * block_bytes_);
  }
}

PackedMatrix PackedMatrix::first_outputs(int count) const {
  PackedMatrix first;
  first.format_ = format_;
  first.outputs_ = count;
  first.inputs_ = inputs_;
  first.block_bytes_ = block_bytes_;
  first.bytes_ = bytes_;
  return first;
}

AlignedBytes pack_values(std::span<const MatrixOfValues> matrices) {
  std::vector<std::vector<std::byte>> rounded;
  std::vector<Tensor> tensors;
  std::size_t bytes = 0;
  for (const MatrixOfValues& each : matrices) {
    std::vector<std::byte>& data =
        rounded.emplace_back(each.outputs * ggml_row_size(each.type, each.inputs));
    ggml_quantize_chunk(each.type, each.values.data(), data.data(), 0, each.outputs, each.inputs,
                        nullptr);
    tensors.push_back({.name = "values",
                       .type = each.type,
                       .shape = {each.inputs, each.outputs, 1, 1},
                       .data = data});
    bytes += PackedMatrix::packed_bytes(tensors.back(), each.type);
  }
  AlignedBytes memory(bytes);
  std::byte* at = memory.data();
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    PackedMatrix& packed = *matrices[i].packed;
    packed = PackedMatrix(tensors[i], matrices[i].type, at);
    packed.pack(tensors[i], 0, packed.blocks());
    at += packed.bytes();
  }
  return memory;
}

}  // namespace firp
