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

/// Weight (output, input) as docs/kernels.md describes the layout, written apart from the packer.
float unpack(const PackedMatrix& w, int output, int input) {
  const PackedFormat& f = w.format();
  const std::byte* const cell =
      w.block(output / 16) + static_cast<std::size_t>(input / 64) * f.cell_bytes();
  const int lane = output % 16;
  const int i = input % 64;
  switch (f.codes) {
    case CodeKind::kF32:
      return read<float>(cell, 16 * i + lane);
    case CodeKind::kF16:
      return ggml_fp16_to_fp32(read<ggml_fp16_t>(cell, 16 * i + lane));
    case CodeKind::kBF16:
      return std::bit_cast<float>(std::uint32_t{read<std::uint16_t>(cell, 16 * i + lane)} << 16);
    default:
      break;
  }
  const bool four = f.codes == CodeKind::kFourBit;
  const int half = i / 32;
  const int k = i % 32;
  int code;
  if (four) {
    const int byte = read<std::uint8_t>(cell, 256 * half + 64 * (k % 16 / 4) + 4 * lane + k % 4);
    code = (k < 16 ? byte & 15 : byte >> 4) - f.zero;
  } else {
    code = read<std::uint8_t>(cell, 512 * half + 64 * (k / 4) + 4 * lane + k % 4) - 128;
  }
  const int groups = 64 / f.group;
  const auto number = [&](int index) {
    const std::byte* const scales = cell + (four ? 512 : 1024);
    return f.wide_scales ? read<float>(scales, index)
                         : ggml_fp16_to_fp32(read<ggml_fp16_t>(scales, index));
  };
  const int group = i / f.group;
  const float product = number(16 * group + lane) * static_cast<float>(code);
  return f.has_min ? product + number(16 * (groups + group) + lane) : product;
}

void expect_same_weights(const Tensor& tensor) {
  const PackedMatrix packed(tensor);
  ASSERT_EQ(packed.outputs(), tensor.rows());
  ASSERT_EQ(packed.inputs(), tensor.columns());
  const std::vector<float> expected = dequantize(tensor);
  for (int output = 0; output < packed.blocks() * 16; ++output) {
    for (int input = 0; input < packed.cells() * 64; ++input) {
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
  EXPECT_THAT(error_of([] { packed_format(GGML_TYPE_IQ4_NL); }),
              testing::AllOf(testing::HasSubstr("iq4_nl"), testing::HasSubstr("q4_K")));

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

TEST(AlignedBytes, AreAligned) {
  for (const std::size_t size : {1u, 100u, 3u << 20}) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(AlignedBytes(size).data()) % 64, 0u);
  }
}

}  // namespace
}  // namespace firp
