#include "kernels/packed_matrix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/random_tensor.h"
#include "model/test_files.h"

namespace firp {
namespace {

template <typename T>
T read(const std::byte* at, std::size_t index = 0) {
  T value;
  std::memcpy(&value, at + index * sizeof(T), sizeof(T));
  return value;
}

/// What a code stands for.
int number_of(const PackedFormat& f, int code) {
  constexpr int kIq4[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  constexpr int kE2m1[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  if (f.type == GGML_TYPE_IQ4_NL || f.type == GGML_TYPE_IQ4_XS) return kIq4[code];
  return f.type == GGML_TYPE_MXFP4 ? kE2m1[code] : code - f.zero;
}

/// Weight (output, input) as docs/kernels.md describes the layout, written apart from the packer.
float unpack(const PackedMatrix& w, int output, int input) {
  const PackedFormat& f = w.format();
  const int lane = output % 16;
  const std::byte* const cell =
      w.block(output / 16) +
      static_cast<std::size_t>(input / (f.sub_scales() ? 256 : 64)) * f.cell_bytes();
  const int i = input % 64;
  switch (f.kind) {
    case WeightKind::kF32:
      return read<float>(cell, 16 * i + lane);
    case WeightKind::kF16:
      return ggml_fp16_to_fp32(read<ggml_fp16_t>(cell, 16 * i + lane));
    case WeightKind::kBF16:
      return std::bit_cast<float>(
          std::uint32_t{read<std::uint16_t>(cell, 32 * (i / 2) + 2 * lane + i % 2)} << 16);
    default:
      break;
  }
  const std::byte* quarter = cell;
  if (f.sub_scales()) quarter += 64 + input % 256 / 64 * f.quarter_bytes();
  const int half = i / 32;
  const int v = i % 32 / 4;
  const int b = i % 4;
  const auto byte = [](const std::byte* at) { return read<std::uint8_t>(at); };
  const auto two_bits = [&](const std::byte* planes) {
    return byte(planes + 64 * (v / 4) + 4 * lane + b) >> (2 * (v % 4)) & 3;
  };
  const int low_bytes = f.bits == 8 ? 512 : f.bits >= 4 ? 256 : 128;
  const std::byte* const low = quarter + half * low_bytes;
  int code;
  if (f.bits == 8) {
    code = byte(low + 64 * v + 4 * lane + b);
  } else if (f.bits >= 4) {
    const int pair = byte(low + 64 * (v % 4) + 4 * lane + b);
    code = v < 4 ? pair & 15 : pair >> 4;
  } else {
    code = two_bits(low);
  }
  const std::byte* at = quarter + 2 * low_bytes;
  if (f.bits == 6) {
    code |= two_bits(at + 128 * half) << 4;
    at += 256;
  } else if (f.bits % 2 != 0) {
    code |= (byte(at + 64 * half + 4 * lane + b) >> v & 1) << (f.bits - 1);
    at += 128;
  }
  const int groups = 64 / f.group;
  const auto number = [&](int index, int header) {
    if (f.type == GGML_TYPE_MXFP4) return std::ldexp(1.0f, byte(at + index) - 128);
    return f.sub_scales() ? ggml_fp16_to_fp32(read<ggml_fp16_t>(cell, header + lane)) *
                                static_cast<float>(read<std::int8_t>(at, index))
                          : ggml_fp16_to_fp32(read<ggml_fp16_t>(at, index));
  };
  const int group = i / f.group;
  const float product = number(16 * group + lane, 0) * static_cast<float>(number_of(f, code));
  return f.has_min ? product + number(16 * (groups + group) + lane, 16) : product;
}

void expect_same_weights(const Tensor& tensor) {
  const PackedMatrix packed(tensor);
  ASSERT_EQ(packed.outputs(), tensor.rows());
  ASSERT_EQ(packed.inputs(), tensor.columns());
  const std::vector<float> expected = dequantize(tensor);
  for (int output = 0; output < packed.blocks() * 16; ++output) {
    for (int input = 0; input < packed.cells() * packed.format().cell_inputs(); ++input) {
      const bool real = output < packed.outputs() && input < packed.inputs();
      const float want =
          real ? expected[static_cast<std::size_t>(output) * packed.inputs() + input] : 0.0f;
      const float got = unpack(packed, output, input);
      ASSERT_TRUE(got == want || (std::isnan(got) && std::isnan(want)))
          << ggml_type_name(tensor.type) << " output " << output << " input " << input << ": "
          << got << " instead of " << want;
    }
  }
}

TEST(PackedMatrix, HoldsExactlyTheWeightsOfTheFile) {
  for (const ggml_type type : kMatrixTypes) {
    const int block = static_cast<int>(ggml_blck_size(type));
    for (const int outputs : {2, 16, 37}) {
      for (const int inputs : {block == 1 ? 70 : block, 3 * block, 512}) {
        if (inputs % block == 0)
          expect_same_weights(RandomTensor(type, outputs, inputs, 1).tensor());
      }
    }
  }
}

/// Every bit of a block matters somewhere: bytes that no quantiser would write, NaN scales
/// included.
TEST(PackedMatrix, HoldsExactlyTheWeightsOfArbitraryBlocks) {
  std::mt19937 generator(2);
  for (const ggml_type type : kMatrixTypes) {
    RandomTensor random(type, 35, 512, 3);
    for (std::byte& byte : random.bytes()) byte = static_cast<std::byte>(generator());
    expect_same_weights(random.tensor());
  }
}

TEST(PackedMatrix, RefusesWhatItCannotPack) {
  EXPECT_THAT(error_of([] { packed_format(GGML_TYPE_IQ3_S); }),
              testing::AllOf(testing::HasSubstr("iq3_s"), testing::HasSubstr("q4_K")));

  const RandomTensor good(GGML_TYPE_Q4_0, 4, 64, 1);
  const auto refuses = [&](auto change) {
    Tensor tensor = good.tensor();
    change(tensor);
    EXPECT_THAT(error_of([&] { PackedMatrix{tensor}; }), testing::HasSubstr("random"));
  };
  refuses([](Tensor& t) { t.shape = {48, 4, 1, 1}; });
  refuses([](Tensor& t) { t.shape = {256, 1, 1, 1}; });
  refuses([](Tensor& t) { t.shape = {0, 4, 1, 1}; });
  refuses([](Tensor& t) { t.shape = {64, 2, 2, 1}; });
  refuses([](Tensor& t) { t.shape = {64, 5, 1, 1}; });
  refuses([](Tensor& t) { t.shape = {64, std::int64_t{1} << 33, 1, 1}; });
}

/// The packed formats hardly add to the file's: what a product of one row costs.
TEST(PackedMatrix, IsAsSmallAsTheFile) {
  for (const ggml_type type : kMatrixTypes) {
    const RandomTensor random(type, 64, 1024, 1);
    const double ratio = static_cast<double>(PackedMatrix(random.tensor()).bytes()) /
                         static_cast<double>(random.tensor().data.size());
    EXPECT_LE(ratio, type == GGML_TYPE_Q2_K ? 1.2 : 1.06) << ggml_type_name(type);
  }
}

TEST(PackedMatrix, PacksTheSameInParts) {
  for (const ggml_type type : kMatrixTypes) {
    const RandomTensor random(type, 16 * 5 + 3, 512, 1);
    const PackedMatrix whole(random.tensor());
    AlignedBytes memory(PackedMatrix::packed_bytes(random.tensor(), type));
    PackedMatrix parts(random.tensor(), type, memory.data());
    for (const auto& [begin, end] : {std::pair{3, 6}, {0, 1}, {1, 3}}) {
      parts.pack(random.tensor(), begin, end);
    }
    ASSERT_EQ(parts.bytes(), whole.bytes());
    EXPECT_EQ(std::memcmp(parts.block(0), whole.block(0), whole.bytes()), 0)
        << ggml_type_name(type);
  }
}

TEST(AlignedBytes, AreAligned) {
  for (const std::size_t size : {1u, 100u, 3u << 20}) {
    AlignedBytes memory(size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.data()) % 64, 0u);
    std::memset(memory.data(), 1, size);
  }
}

// Files of packed weights outlive the program that wrote them (engine/packed_file.h).
TEST(PackedMatrix, ItsBytesAreThoseOfThePackedLayout) {
  std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const ggml_type type : kMatrixTypes) {
    constexpr int kOutputs = 20, kInputs = 512;
    std::vector<std::byte> data(kOutputs * ggml_row_size(type, kInputs));
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 37 % 251);
    const PackedMatrix w({"w", type, {kInputs, kOutputs, 1, 1}, data});
    for (std::size_t i = 0; i < w.bytes(); ++i) {
      hash = (hash ^ static_cast<std::uint8_t>(w.block(0)[i])) * 0x100000001b3u;
    }
  }
  EXPECT_EQ(hash, 0xc6d42187d6bb1808u)
      << "raise kPackedLayout, unless a type was added, and write this hash here";
  EXPECT_EQ(kPackedLayout, 2);
}

}  // namespace
}  // namespace firp
