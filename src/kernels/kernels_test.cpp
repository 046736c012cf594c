#include "kernels/kernels.h"

#include <ggml-cpu.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numbers>
#include <numeric>
#include <optional>
#include <random>

#include "kernels/amx_shapes.h"
#include "kernels/random_tensor.h"
#include "kernels/test_products.h"
#include "model/test_files.h"

namespace firp {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool reads_codes(ggml_type type) { return packed_format(type).kind == WeightKind::kCodes; }

/// Nearly normal. Sums of four integers, since the library's normal distribution has other last
/// bits on other machines.
std::vector<float> random_values(std::size_t n, unsigned seed, float deviation = 1.0f) {
  std::mt19937 generator(seed);
  std::vector<float> values(n);
  for (float& value : values) {
    int sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<int>(generator() >> 16) - 32768;
    value = static_cast<float>(sum) / 37837.0f * deviation;
  }
  return values;
}

/// Bit for bit, so that NaNs of the same bits are equal and 0 is not -0.
testing::AssertionResult same_bits(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return testing::AssertionFailure() << a.size() << " != " << b.size();
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) {
      return testing::AssertionFailure() << "at " << i << ": " << a[i] << " and " << b[i];
    }
  }
  return testing::AssertionSuccess();
}

/// Each test runs on every instruction set that the machine has.
class KernelsTest : public testing::TestWithParam<std::string> {
 protected:
  const Kernels& kernels_ = kernels(GetParam());

  /// Rows `first_row` .. of an endless random matrix of activations.
  Activations activations(int rows, int inputs, int first_row = 0) const {
    Activations x(rows, inputs);
    x.resize(rows, inputs);
    for (int row = 0; row < rows; ++row) {
      std::ranges::copy(random_values(inputs, 1000 + first_row + row), x.values(row));
      prepare(x, row);
    }
    return x;
  }

  /// All forms of a row, from its values.
  void prepare(Activations& x, int row) const {
    kernels_.prepare(x, row, 0, x.group_count(), ActivationForm::kGroups);
    kernels_.prepare(x, row, 0, x.group_count(), ActivationForm::kBf16);
  }

  /// An input as the product reads it, after its rounding.
  double input_of(ggml_type type, const Activations& x, int row, int i) const {
    const ActivationGroup& group = x.groups(row)[i / 32];
    switch (kernels_.form(packed_format(type).kind)) {
      case ActivationForm::kGroups:
        return double{group.scale} * group.codes[i % 32];
      case ActivationForm::kBf16:
        return std::bit_cast<float>(std::uint32_t{x.bf16(row)[i]} << 16);
      default:
        return x.values(row)[i];
    }
  }

  std::vector<float> product(const PackedMatrix& w, const Activations& x) const {
    return firp::product(kernels_, w, x);
  }
};

INSTANTIATE_TEST_SUITE_P(Isa, KernelsTest, testing::ValuesIn(available_isas()),
                         [](const auto& tested) { return tested.param; });

TEST_P(KernelsTest, ProductIsWithinRoundingOfTheExactOne) {
  for (const ggml_type type : kMatrixTypes) {
    const int block = static_cast<int>(ggml_blck_size(type));
    for (const auto& [outputs, inputs] : {std::pair{2, block == 1 ? 7 : block},
                                          {16, 3 * block},
                                          {53, block == 1 ? 200 : 5 * block},
                                          {130, 768}}) {
      if (inputs % block != 0) continue;
      SCOPED_TRACE(testing::Message() << ggml_type_name(type) << ' ' << outputs << 'x' << inputs);
      const RandomTensor random(type, outputs, inputs, 1);
      const std::vector<float> weights = dequantize(random.tensor());
      const PackedMatrix w(random.tensor());
      const Activations x = activations(5, inputs);
      const std::vector<float> y = product(w, x);
      // A code's term and its min's are rounded apart and may cancel; both are below the group's
      // largest weight and min, which this doubles.
      const double terms = reads_codes(type) ? 4.0 * inputs / w.format().group + 8 : inputs + 2;
      for (int row = 0; row < x.rows(); ++row) {
        std::vector<double> in(inputs);
        double size = 0;
        for (int i = 0; i < inputs; ++i) {
          in[i] = input_of(type, x, row, i);
          size += std::abs(in[i]) * 4;  // the weights are normal
        }
        for (int output = 0; output < outputs; ++output) {
          const double exact = std::inner_product(
              in.begin(), in.end(), weights.begin() + std::ptrdiff_t{output} * inputs, 0.0);
          ASSERT_NEAR(y[static_cast<std::size_t>(row) * outputs + output], exact,
                      terms * kEpsilon * size)
              << "row " << row << " output " << output;
        }
      }
    }
  }
}

/// The extreme codes, where 8- and 16-bit intermediate sums would saturate.
TEST_P(KernelsTest, ProductOfExtremeCodesIsExact) {
  for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q8_0,
                               GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4}) {
    for (const int code_byte : {0x00, 0x80, 0x77, 0x7f, 0xff}) {
      for (const float sign : {1.0f, -1.0f}) {
        SCOPED_TRACE(testing::Message() << ggml_type_name(type) << ' ' << code_byte << ' ' << sign);
        RandomTensor random(type, 16, 64, 1);
        const std::size_t block_bytes = ggml_type_size(type);
        for (std::size_t i = 0; i < random.bytes().size(); ++i) {
          const std::size_t at = i % block_bytes;
          const std::size_t scale_bytes = type == GGML_TYPE_MXFP4  ? 1
                                          : type == GGML_TYPE_Q4_1 ? 4
                                                                   : 2;
          // Scale and min are 1: in F16, or as 2^(128 - 128).
          const int one = type == GGML_TYPE_MXFP4 ? 128 : at % 2 == 0 ? 0x00 : 0x3c;
          random.bytes()[i] = static_cast<std::byte>(at < scale_bytes ? one : code_byte);
        }
        Activations x(1, 64);
        x.resize(1, 64);
        std::fill_n(x.values(0), 64, sign * 127.0f);
        prepare(x, 0);
        const std::vector<float> weights = dequantize(random.tensor());
        const float exact =
            127.0f * sign * std::accumulate(weights.begin(), weights.begin() + 64, 0.0f);
        for (const float y : product(PackedMatrix(random.tensor()), x)) ASSERT_EQ(y, exact);
      }
    }
  }
}

/// Every scale of MXFP4, from subnormal to those whose products are infinite.
TEST_P(KernelsTest, ProductWithPowersOfTwoIsExact) {
  RandomTensor random(GGML_TYPE_MXFP4, 256, 32, 1);
  for (std::size_t i = 0; i < random.bytes().size(); ++i) {
    // Code 1 is 1.
    random.bytes()[i] = static_cast<std::byte>(i % 17 == 0 ? i / 17 : 0x11);
  }
  for (const int rows : {1, 12}) {
    Activations x(rows, 32);
    x.resize(rows, 32);
    for (int row = 0; row < rows; ++row) {
      x.values(row)[5] = 127.0f;
      prepare(x, row);
    }
    const std::vector<float> y = product(PackedMatrix(random.tensor()), x);
    for (std::size_t i = 0; i < y.size(); ++i) {
      ASSERT_EQ(y[i], 127.0f * std::ldexp(1.0f, static_cast<int>(i % 256) - 128)) << i;
    }
  }
}

TEST_P(KernelsTest, ProductOfARowDependsOnNothingElse) {
  constexpr int kMostRows = 50;  // more than 3 of the largest tiles
  constexpr int kInputs = 512;
  constexpr int kOutputs = 16 * 13 + 5;
  constexpr int kStride = kOutputs + 3;
  std::mt19937 generator(4);
  for (const ggml_type type : kMatrixTypes) {
    SCOPED_TRACE(ggml_type_name(type));
    const RandomTensor random(type, kOutputs, kInputs, 1);
    const PackedMatrix w(random.tensor());
    std::vector<std::vector<float>> alone;
    for (int row = 0; row < kMostRows; ++row)
      alone.push_back(product(w, activations(1, kInputs, row)));
    for (int rows = 1; rows <= kMostRows; ++rows) {
      const Activations x = activations(rows, kInputs);
      std::vector<float> y(static_cast<std::size_t>(rows) * kStride, 7.0f);
      for (int block = 0; block < w.blocks();) {
        const int end = block + 1 + static_cast<int>(generator() % (w.blocks() - block));
        kernels_.matmul({.weights = w,
                         .first_block = block,
                         .end_block = end,
                         .y = y.data(),
                         .y_stride = kStride,
                         .next = generator() % 2 == 0 ? w.block(0) : nullptr},
                        x);
        block = end;
      }
      for (int row = 0; row < rows; ++row) {
        const std::span<const float> got(y.data() + row * kStride, kStride);
        ASSERT_TRUE(same_bits(got.first(kOutputs), alone[row])) << "row " << row << " of " << rows;
        for (const float untouched : got.subspan(kOutputs)) ASSERT_EQ(untouched, 7.0f);
      }
    }
  }
}

#if defined(__x86_64__)
/// ggml sets the shapes of AMX's tiles once in a thread, and relies on them ever after.
TEST(Amx, LeavesTheShapesOfTilesAsTheyWere) {
  if (std::ranges::count(available_isas(), "avx512_amx") == 0) {
    GTEST_SKIP() << "this machine has no AMX";
  }
  const AmxShapes before = {.row_bytes = {64, 32}, .rows = {8, 16}};
  AmxShapes after = {};
  Activations x(3, 64);
  x.resize(3, 64);
  const RandomTensor random(GGML_TYPE_BF16, 40, 64, 1);
  const PackedMatrix w(random.tensor());
  std::vector<float> y(3 * 40);
  asm volatile("ldtilecfg %0" ::"m"(before));
  kernels("avx512_amx")
      .matmul({.weights = w, .first_block = 0, .end_block = 3, .y = y.data(), .y_stride = 40}, x);
  asm volatile("sttilecfg %0" : "=m"(after));
  asm volatile("tilerelease");
  EXPECT_EQ(std::memcmp(&before, &after, sizeof before), 0);
}
#endif

TEST_P(KernelsTest, QuantizedProductIsAtLeastAsGoodAsThatOfGgml) {
  constexpr int kInputs = 2048;
  constexpr int kOutputs = 128;
  ggml_cpu_init();
  for (const ggml_type type : kMatrixTypes) {
    if (!reads_codes(type)) continue;
    const RandomTensor random(type, kOutputs, kInputs, 5);
    const std::vector<float> weights = dequantize(random.tensor());
    const Activations x = activations(4, kInputs);
    const std::vector<float> y = product(PackedMatrix(random.tensor()), x);
    const ggml_type_traits_cpu& ggml = *ggml_get_type_traits_cpu(type);
    double ours = 0;
    double theirs = 0;
    for (int row = 0; row < x.rows(); ++row) {
      std::vector<std::byte> codes(ggml_row_size(ggml.vec_dot_type, kInputs));
      ggml_get_type_traits_cpu(ggml.vec_dot_type)->from_float(x.values(row), codes.data(), kInputs);
      for (int output = 0; output < kOutputs; ++output) {
        const double exact =
            std::inner_product(x.values(row), x.values(row) + kInputs,
                               weights.begin() + std::ptrdiff_t{output} * kInputs, 0.0,
                               std::plus<>(), [](float a, float b) { return double{a} * b; });
        float dot;
        ggml.vec_dot(kInputs, &dot, 0,
                     random.tensor().data.data() + output * ggml_row_size(type, kInputs), 0,
                     codes.data(), 0, 1);
        ours += std::pow(y[row * kOutputs + output] - exact, 2);
        theirs += std::pow(dot - exact, 2);
      }
    }
    EXPECT_LE(std::sqrt(ours), 1.03 * std::sqrt(theirs)) << ggml_type_name(type);
  }
}

TEST_P(KernelsTest, QuantizeRoundsToTheNearestCode) {
  constexpr int kInputs = 32 * 37 + 5;
  Activations x = activations(1, kInputs);
  std::fill_n(x.values(0) + 64, 32, 0.0f);
  std::fill_n(x.values(0) + 96, 32, 1e-42f);
  prepare(x, 0);
  ASSERT_EQ(x.stride() % 64, 0);
  for (int i = 0; i < x.stride(); ++i) {
    const int code = x.groups(0)[i / 32].codes[i % 32];
    const double scale = x.groups(0)[i / 32].scale;
    ASSERT_LE(std::abs(code), 127);
    ASSERT_NEAR(code * scale, x.values(0)[i], 0.5001 * scale + 1e-41) << i;
    if (i >= kInputs) {
      ASSERT_EQ(code, 0);
    }
  }
  for (int group = 0; group < x.stride() / 32; ++group) {
    const float largest = std::ranges::max(std::span(x.values(0) + 32 * group, 32), {},
                                           [](float v) { return std::abs(v); });
    if (std::abs(largest) > 1e-30f) {
      ASSERT_FLOAT_EQ(x.groups(0)[group].scale, std::abs(largest) / 127);
    }
    const ActivationGroup& sums = x.groups(0)[group];
    ASSERT_EQ(sums.minus_sums[2], sums.minus_sums[0] + sums.minus_sums[1]);
    for (int part = 0; part < 3; ++part) {
      ASSERT_EQ(sums.scaled_sums[part], sums.scale * static_cast<float>(-sums.minus_sums[part]));
    }
    for (int part = 0; part < 2; ++part) {
      const std::int8_t* const codes = x.groups(0)[group].codes + 16 * part;
      ASSERT_EQ(-x.groups(0)[group].minus_sums[part], std::accumulate(codes, codes + 16, 0));
    }
  }
}

TEST_P(KernelsTest, QuantizeTakesWhatIsNotFinite) {
  Activations x = activations(1, 128);
  x.values(0)[3] = kNan;
  x.values(0)[40] = kInfinity;
  x.values(0)[70] = -kInfinity;
  x.values(0)[100] = std::numeric_limits<float>::max();
  prepare(x, 0);
  for (int i = 0; i < 128; ++i) ASSERT_GE(x.groups(0)[i / 32].codes[i % 32], -127);
}

TEST_P(KernelsTest, RmsNorm) {
  for (const int n : {1, 15, 16, 64, 576, 1003}) {
    const std::vector<float> x = random_values(n, 1, 3.0f);
    const std::vector<float> weight = random_values(n, 2);
    double squares = 0;
    for (const float value : x) squares += double{value} * value;
    const double expected = 1 / std::sqrt(squares / n + 1e-5);
    const float inverse = kernels_.inverse_rms(x.data(), 1e-5f, n);
    ASSERT_NEAR(inverse, expected, 20 * kEpsilon * expected);
    std::vector<float> out(n + 1, 7.0f);
    kernels_.scale(x.data(), inverse, weight.data(), n, out.data());
    for (int i = 0; i < n; ++i) ASSERT_EQ(out[i], x[i] * inverse * weight[i]);
    ASSERT_EQ(out[n], 7.0f);
    std::vector<float> in_place = x;
    kernels_.scale(in_place.data(), inverse, weight.data(), n, in_place.data());
    ASSERT_TRUE(same_bits(in_place, std::span(out).first(n)));
  }
}

TEST_P(KernelsTest, MatmulAddsToWhatIsThere) {
  for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_BF16}) {
    const RandomTensor random(type, 53, 128, 1);
    const PackedMatrix w(random.tensor());
    for (const int rows : {7, 23, 41}) {
      const Activations x = activations(rows, 128);
      const std::vector<float> alone = product(w, x);
      std::vector<float> y = random_values(alone.size(), 9);
      std::vector<float> expected = y;
      for (std::size_t i = 0; i < y.size(); ++i) expected[i] += alone[i];
      kernels_.matmul({.weights = w,
                       .first_block = 0,
                       .end_block = w.blocks(),
                       .y = y.data(),
                       .y_stride = 53,
                       .add = true},
                      x);
      ASSERT_TRUE(same_bits(y, expected)) << ggml_type_name(type) << ", " << rows << " rows";
    }
  }
}

TEST_P(KernelsTest, PrepareOfAPartIsThatOfTheWhole) {
  const Activations whole = activations(1, 320);
  Activations parts(1, 320);
  parts.resize(1, 320);
  std::ranges::copy(std::span(whole.values(0), 320), parts.values(0));
  for (const auto& [begin, end] : {std::pair{3, 10}, {0, 1}, {1, 3}}) {
    kernels_.prepare(parts, 0, begin, end, ActivationForm::kGroups);
    kernels_.prepare(parts, 0, begin, end, ActivationForm::kBf16);
  }
  ASSERT_EQ(std::memcmp(parts.groups(0), whole.groups(0), 10 * sizeof(ActivationGroup)), 0);
  ASSERT_TRUE(std::ranges::equal(std::span(parts.bf16(0), 320), std::span(whole.bf16(0), 320)));
}

/// The best of all logits, whatever the parts they are looked through in.
TEST_P(KernelsTest, SelectBestIsASort) {
  std::vector<float> logits = random_values(1003, 3);
  logits[7] = logits[900] = 9.0f;
  logits[500] = kNan;
  logits[501] = kInfinity;
  logits[502] = -kInfinity;
  std::vector<TokenLogit> sorted;
  for (int i = 0; i < 1003; ++i) {
    if (!std::isnan(logits[i])) sorted.push_back({i, logits[i]});
  }
  std::ranges::stable_sort(sorted, std::greater<>(), &TokenLogit::logit);
  std::mt19937 generator(5);
  for (const int count : {1, 2, 40, 1002}) {
    std::vector<TokenLogit> best(count);
    int size = 0;
    for (int begin = 0; begin < 1003;) {
      const int n = std::min<int>(1003 - begin, 1 + generator() % 300);
      kernels_.select_best(logits.data() + begin, n, begin, best.data(), size, count);
      begin += n;
    }
    ASSERT_EQ(size, count);
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(best[i].token, sorted[i].token) << i << " of " << count;
      ASSERT_EQ(best[i].logit, sorted[i].logit);
    }
  }
}

TEST_P(KernelsTest, Dot) {
  for (const int n : {1, 15, 16, 70, 576}) {
    const std::vector<float> a = random_values(n, 1), b = random_values(n, 2);
    double exact = 0;
    for (int i = 0; i < n; ++i) exact += double{a[i]} * b[i];
    ASSERT_NEAR(kernels_.dot(a.data(), b.data(), n), exact, 4 * n * kEpsilon);
  }
}

TEST_P(KernelsTest, SumExpLeavesOutNans) {
  for (const int n : {1, 15, 16, 100}) {
    std::vector<float> logits = random_values(n, 4, 5.0f);
    double sum = 0;
    float largest = -kInfinity;
    for (const float logit : logits) largest = std::max(largest, logit);
    for (const float logit : logits) sum += std::exp(double{logit} - largest);
    const ExpSum plain = kernels_.sum_exp(logits.data(), n);
    ASSERT_EQ(plain.largest, largest);
    ASSERT_NEAR(plain.sum, sum, 1e-5 * sum);
    logits.insert(logits.begin() + n / 2, kNan);
    const ExpSum with_nan = kernels_.sum_exp(logits.data(), n + 1);
    ASSERT_EQ(with_nan.largest, largest);
    ASSERT_NEAR(with_nan.sum, sum, 1e-5 * sum);
  }
  ASSERT_EQ(kernels_.sum_exp(&kNan, 1).sum, 0.0f);
}

TEST_P(KernelsTest, RopeTurnsNeighboursOrHalves) {
  constexpr int kPairs = 20;
  const std::vector<float> head = random_values(2 * kPairs + 4, 1);
  std::vector<float> cosines(kPairs), sines(kPairs);
  for (int i = 0; i < kPairs; ++i) {
    cosines[i] = std::cos(0.3f * i);
    sines[i] = std::sin(0.3f * i);
  }
  for (const bool interleaved : {true, false}) {
    std::vector<float> turned = head;
    kernels_.rope(turned.data(), cosines.data(), sines.data(), 2 * kPairs, interleaved);
    for (int i = 0; i < kPairs; ++i) {
      const int a = interleaved ? 2 * i : i;
      const int b = interleaved ? 2 * i + 1 : i + kPairs;
      ASSERT_NEAR(turned[a], double{head[a]} * cosines[i] - double{head[b]} * sines[i], 1e-6);
      ASSERT_NEAR(turned[b], double{head[a]} * sines[i] + double{head[b]} * cosines[i], 1e-6);
    }
    for (int i = 2 * kPairs; i < 2 * kPairs + 4; ++i) ASSERT_EQ(turned[i], head[i]);
  }
}

/// out = activation(gate) * up, within a relative error, and alike wherever an element stands.
void expect_gated(void (*multiply)(const float*, const float*, int, float*),
                  double (*activation)(double), double relative_error) {
  std::vector<float> gate = random_values(1003, 1, 8.0f);
  gate[0] = 200.0f;
  gate[1] = -200.0f;
  gate[2] = 0.0f;
  const std::vector<float> up = random_values(gate.size(), 2);
  std::vector<float> out(gate.size() + 1, 7.0f);
  multiply(gate.data(), up.data(), static_cast<int>(gate.size()), out.data());
  for (std::size_t i = 0; i < gate.size(); ++i) {
    const double expected = activation(gate[i]) * up[i];
    ASSERT_NEAR(out[i], expected, relative_error * std::abs(expected) + 1e-30) << gate[i];
  }
  ASSERT_EQ(out[gate.size()], 7.0f);
  // An element's result does not depend on where it stands.
  std::vector<float> one(1);
  for (const std::size_t i : {5u, 17u, 1000u}) {
    multiply(&gate[i], &up[i], 1, one.data());
    ASSERT_TRUE(same_bits(one, std::span(out).subspan(i, 1)));
  }
}

TEST_P(KernelsTest, SiluMultiply) {
  expect_gated(
      kernels_.silu_multiply, [](double g) { return g / (1 + std::exp(-g)); }, 1e-6);
}

TEST_P(KernelsTest, GeluMultiply) {
  const auto gelu = [](double g) {
    const double y = std::sqrt(2 / std::numbers::pi) * (g + 0.044715 * g * g * g);
    return g / (1 + std::exp(-2 * y));
  };
  // The rounding of the exponent's argument, of some 30, counts most.
  expect_gated(kernels_.gelu_multiply, gelu, 1e-5);
}

TEST_P(KernelsTest, SoftCap) {
  std::vector<float> x = random_values(1003, 1, 60.0f);
  x[0] = 1e6f;
  x[1] = -1e6f;
  std::vector<float> capped = x;
  kernels_.soft_cap(capped.data(), 30.0f, 1003);
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(capped[i], 30 * std::tanh(double{x[i]} / 30), 1e-5) << x[i];
  }
  for (const std::size_t i : {5u, 17u, 1000u}) {
    std::vector<float> one = {x[i]};
    kernels_.soft_cap(one.data(), 30.0f, 1);
    ASSERT_TRUE(same_bits(one, std::span(capped).subspan(i, 1)));
  }
}

TEST_P(KernelsTest, AddScaled) {
  const std::vector<float> x = random_values(1003, 1), weight = random_values(1003, 2);
  const std::vector<float> before = random_values(1004, 3);
  std::vector<float> out = before;
  kernels_.add_scaled(x.data(), 0.3f, weight.data(), 1003, out.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(out[i], before[i] + double{x[i]} * 0.3f * weight[i], 1e-6);
  }
  ASSERT_EQ(out[1003], before[1003]);
  // However the elements are divided over calls.
  std::vector<float> in_parts = before;
  for (int first = 0; first < 1003;) {
    const int count = std::min(1003 - first, 1 + first % 37);
    kernels_.add_scaled(&x[first], 0.3f, &weight[first], count, &in_parts[first]);
    first += count;
  }
  ASSERT_TRUE(same_bits(in_parts, out));
}

TEST_P(KernelsTest, StoreKvRoundsToNearestEven) {
  for (const int head_size : {8, 40, 64, 80}) {
    std::vector<float> key = random_values(head_size, 1);
    key[0] = 1.0f + 0x1p-11f;      // a tie: down to even
    key[1] = 1.0f + 3 * 0x1p-11f;  // a tie: up to even
    key[2] = 1e-7f;                // subnormal in F16
    key[3] = 1e6f;
    const std::vector<float> value = random_values(head_size, 2);
    std::vector<Half> part(2 * 64 * head_size, 0x1234);
    kernels_.store_kv(key.data(), value.data(), {CacheType::kF16, head_size},
                      reinterpret_cast<std::byte*>(part.data()), 37);
    for (int i = 0; i < head_size; ++i) {
      for (int lane = 0; lane < 64; ++lane) {
        ASSERT_EQ(part[i * 64 + lane], lane == 37 ? ggml_fp32_to_fp16(key[i]) : 0x1234);
        ASSERT_EQ(part[(64 + lane) * head_size + i],
                  lane == 37 ? ggml_fp32_to_fp16(value[i]) : 0x1234);
      }
    }
  }
}

/// Codes and scales of a head, as Q8_0 rounds it.
struct Codes {
  explicit Codes(std::span<const float> head) {
    for (std::size_t first = 0; first < head.size(); first += 32) {
      const std::span<const float> group =
          head.subspan(first, std::min<std::size_t>(32, head.size() - first));
      float largest = 0;
      for (const float x : group) largest = std::max(largest, std::abs(x));
      scales.push_back(largest / 127.0f);
      for (const float x : group) {
        codes.push_back(static_cast<int>(std::nearbyint(largest > 0 ? x * (127.0f / largest) : 0)));
      }
    }
  }
  float value(int i) const { return static_cast<float>(codes[i]) * scales[i / 32]; }
  std::vector<int> codes;
  std::vector<float> scales;
};

TEST_P(KernelsTest, StoreKvRoundsToTheNearestCode) {
  for (const int head_size : {8, 40, 64, 80}) {
    const PagePart part = {CacheType::kQ8_0, head_size};
    const std::vector<float> key = random_values(head_size, 1);
    std::vector<float> value = random_values(head_size, 2);
    std::fill_n(value.begin() + head_size - 8, 8, 0.0f);
    std::vector<std::byte> bytes(part.bytes(), std::byte{0x55});
    kernels_.store_kv(key.data(), value.data(), part, bytes.data(), 37);
    const Codes keys(key), values(value);
    const auto code_at = [&](std::size_t at) { return static_cast<std::int8_t>(bytes[at]); };
    const auto scale_at = [&](std::size_t at) {
      float scale;
      std::memcpy(&scale, &bytes[at], sizeof(scale));
      return scale;
    };
    const std::size_t row = part.key_bytes() + 37 * part.value_bytes();
    for (int i = 0; i < head_size; ++i) {
      for (int lane = 0; lane < 64; ++lane) {
        ASSERT_EQ(code_at(i * 64 + lane), lane == 37 ? keys.codes[i] : 0x55);
      }
      ASSERT_EQ(code_at(row + part.groups() * 4 + i), values.codes[i]);
    }
    for (int g = 0; g < part.groups(); ++g) {
      ASSERT_EQ(scale_at(head_size * 64 + (g * 64 + 37) * 4), keys.scales[g]);
      ASSERT_EQ(scale_at(row + g * 4), values.scales[g]);
    }
    for (std::size_t at = part.key_bytes(); at < bytes.size(); ++at) {
      if (at < row || at >= row + part.value_bytes()) {
        ASSERT_EQ(bytes[at], std::byte{0x55});
      }
    }
  }
}

// ---- attention ----

/// Pages with keys and values, and NaN everywhere else.
class KvPages {
 public:
  static constexpr std::size_t kOffset = 12;  // parts of heads need not be aligned

  KvPages(const Kernels& kernels, const PagePart& part) : kernels_(kernels), part_(part) {}

  void put(int at, const float* key, const float* value) {
    while (pages_.size() <= static_cast<std::size_t>(at / 64)) {
      // NaN in F16 and F32.
      pages_.emplace_back((kOffset + part_.bytes()) / 4 + 1, 0x7fff7fff);
    }
    kernels_.store_kv(key, value, part_, bytes(at / 64) + kOffset, at % 64);
  }
  std::vector<const std::byte*> pointers() {
    std::vector<const std::byte*> result;
    for (std::size_t page = 0; page < pages_.size(); ++page) result.push_back(bytes(page));
    return result;
  }

 private:
  std::byte* bytes(std::size_t page) { return reinterpret_cast<std::byte*>(pages_[page].data()); }

  const Kernels& kernels_;
  PagePart part_;
  std::vector<std::vector<std::uint32_t>> pages_;
};

/// Positions with keys and values, and queries; laid out over pages and scratch in any way.
class Attention {
 public:
  Attention(const Kernels& kernels, CacheType type, int group, int head_size, int positions)
      : kernels_(kernels),
        type_(type),
        group_(group),
        head_size_(head_size),
        positions_(positions),
        query_(random_values(std::size_t(group) * head_size, 1)),
        keys_(random_values(std::size_t(positions) * head_size, 2)),
        values_(random_values(std::size_t(positions) * head_size, 3)) {}

  int window = 0;
  float softcap = 0;

  /// The first `committed` positions in pages, the others in the scratch slots `slots`, and NaN
  /// everywhere else.
  std::vector<float> run(int committed, const std::vector<std::int32_t>& slots) const {
    const PagePart part = {type_, head_size_};
    KvPages pages(kernels_, part), scratch(kernels_, part);
    const auto put = [&](KvPages& to, int at, int position) {
      to.put(at, keys_.data() + std::size_t(position) * head_size_,
             values_.data() + std::size_t(position) * head_size_);
    };
    for (int i = 0; i < committed; ++i) put(pages, i, i);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      if (slots[i] != kNoSlot) put(scratch, slots[i], committed + static_cast<int>(i));
    }
    const std::vector<const std::byte*> page_pointers = pages.pointers();
    const std::vector<const std::byte*> scratch_pointers = scratch.pointers();
    std::vector<float> out(query_.size() + 1, 7.0f);
    std::vector<AttentionHead> heads;
    for (std::size_t at = 0; at < query_.size(); at += head_size_) {
      heads.push_back({.query = &query_[at], .out = &out[at], .slots = slots});
    }
    kernels_.attend({.heads = heads,
                     .part = part,
                     .scale = scale(),
                     .softcap = softcap,
                     .window = window,
                     .offset = KvPages::kOffset,
                     .pages = page_pointers,
                     .committed = committed,
                     .scratch = scratch_pointers});
    EXPECT_EQ(out.back(), 7.0f);
    out.pop_back();
    return out;
  }

  /// In double, over the positions that `seen` says.
  std::vector<double> reference(const std::vector<bool>& seen) const {
    std::vector<double> out(query_.size());
    std::vector<std::vector<float>> keys, values;
    for (int p = 0; p < positions_; ++p) {
      keys.push_back(rounded(std::span(keys_).subspan(std::size_t(p) * head_size_, head_size_)));
      values.push_back(
          rounded(std::span(values_).subspan(std::size_t(p) * head_size_, head_size_)));
    }
    for (int head = 0; head < group_; ++head) {
      std::vector<double> weights(positions_);
      double sum = 0;
      for (int p = 0; p < positions_; ++p) {
        double score = 0;
        for (int i = 0; i < head_size_; ++i) {
          score += double{query_[head * head_size_ + i]} * keys[p][i];
        }
        score *= scale();
        if (softcap > 0) score = softcap * std::tanh(score / softcap);
        const bool in_window = window == 0 || p >= positions_ - window;
        weights[p] = seen[p] && in_window ? std::exp(score) : 0;
        sum += weights[p];
      }
      for (int p = 0; p < positions_; ++p) {
        for (int i = 0; i < head_size_; ++i) {
          out[head * head_size_ + i] += weights[p] / sum * values[p][i];
        }
      }
    }
    return out;
  }

 private:
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_size_)); }
  std::vector<float> rounded(std::span<const float> head) const {
    const Codes codes(head);
    std::vector<float> result;
    for (int i = 0; i < head_size_; ++i) {
      result.push_back(type_ == CacheType::kQ8_0 ? codes.value(i)
                                                 : ggml_fp16_to_fp32(ggml_fp32_to_fp16(head[i])));
    }
    return result;
  }

  const Kernels& kernels_;
  CacheType type_;
  int group_, head_size_, positions_;
  std::vector<float> query_, keys_, values_;
};

constexpr CacheType kCacheTypes[] = {CacheType::kF16, CacheType::kQ8_0};

std::vector<std::int32_t> random_slots(int count, std::mt19937& generator) {
  std::vector<std::int32_t> slots(count + 100);
  std::iota(slots.begin(), slots.end(), 0);
  std::ranges::shuffle(slots, generator);
  slots.resize(count);
  return slots;
}

TEST_P(KernelsTest, AttendIsSoftmaxAttention) {
  for (const CacheType type : kCacheTypes) {
    std::mt19937 generator(6);
    for (const int head_size : {8, 32, 40, 64, 80, 128, 256}) {
      for (const int group : {1, 2, 3, 7, 16}) {
        SCOPED_TRACE(testing::Message() << head_size << ' ' << group);
        for (const int positions : {1, 17, 64, 65, 200}) {
          Attention attention(kernels_, type, group, head_size, positions);
          attention.window = std::array{0, 1, 20, 64, 90}[generator() % 5];
          attention.softcap = std::array{0.0f, 0.0f, 1.5f}[generator() % 3];
          const int committed = static_cast<int>(generator() % positions);
          std::vector<std::int32_t> slots = random_slots(positions - committed, generator);
          std::vector<bool> seen(positions, true);
          for (int i = committed; i + 1 < positions; ++i) {
            if (generator() % 4 == 0) {
              seen[i] = false;
              slots[i - committed] = kNoSlot;
            }
          }
          const std::vector<float> got = attention.run(committed, slots);
          const std::vector<double> expected = attention.reference(seen);
          for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-5);
        }
      }
    }
  }
}

TEST_P(KernelsTest, AttendIsTheSameWhereverAPositionLies) {
  for (const CacheType type : kCacheTypes) {
    std::mt19937 generator(7);
    for (const int head_size : {8, 32, 40, 64, 80, 128}) {
      for (const int group : {1, 3, 4, 16}) {
        for (const int positions : {1, 15, 64, 70, 130, 200}) {
          SCOPED_TRACE(testing::Message() << head_size << ' ' << group << ' ' << positions);
          Attention attention(kernels_, type, group, head_size, positions);
          attention.window = std::array{0, 3, 64, 75, 130}[generator() % 5];
          attention.softcap = std::array{0.0f, 2.0f}[generator() % 2];
          // Some of the last positions are not seen.
          const int all_seen = positions - static_cast<int>(generator() % (positions / 2 + 1));
          std::vector<bool> hole(positions);
          for (int i = all_seen; i + 1 < positions; ++i) hole[i] = generator() % 3 == 0;
          std::optional<std::vector<float>> first;
          for (int trial = 0; trial < 6; ++trial) {
            // A whole prefill chunk in the scratch; then as much in pages as can be; then any
            // split.
            const int committed = trial == 0   ? 0
                                  : trial == 1 ? std::min(all_seen, positions - 1)
                                               : static_cast<int>(generator() % all_seen);
            std::vector<std::int32_t> slots = random_slots(positions - committed, generator);
            if (trial % 3 == 0) std::iota(slots.begin(), slots.end(), trial * 5);
            if (trial % 3 == 1) std::ranges::sort(slots);
            for (int i = committed; i < positions; ++i) {
              if (hole[i]) slots[i - committed] = kNoSlot;
            }
            const std::vector<float> out = attention.run(committed, slots);
            if (!first) first = out;
            ASSERT_TRUE(same_bits(out, *first)) << "trial " << trial << " committed " << committed;
          }
        }
      }
    }
  }
}

/// Blocks of 64 in which nothing is seen change nothing.
TEST_P(KernelsTest, AttendSkipsWholeBlocksOfHoles) {
  for (const CacheType type : kCacheTypes) {
    constexpr int kPositions = 200;
    const Attention attention(kernels_, type, 3, 64, kPositions);
    for (const int first_hole : {0, 10, 64}) {
      std::vector<std::int32_t> slots(kPositions, kNoSlot);
      std::vector<bool> seen(kPositions, false);
      for (int i = 0; i < kPositions; ++i) {
        if (i < first_hole || i == kPositions - 1) {
          slots[i] = i;
          seen[i] = true;
        }
      }
      const std::vector<float> got = attention.run(0, slots);
      const std::vector<double> expected = attention.reference(seen);
      for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-5);
    }
  }
}

TEST_P(KernelsTest, AttendOfOneHeadDoesNotDependOnTheGroup) {
  for (const CacheType type : kCacheTypes) {
    constexpr int kHeadSize = 64;
    constexpr int kPositions = 100;
    std::vector<std::int32_t> slots(kPositions);
    std::iota(slots.begin(), slots.end(), 0);
    const std::vector<float> all =
        Attention(kernels_, type, 16, kHeadSize, kPositions).run(0, slots);
    for (const int group : {1, 2, 3, 4, 5, 9}) {
      // random_values(n) begins with the same values for every n.
      const std::vector<float> some =
          Attention(kernels_, type, group, kHeadSize, kPositions).run(0, slots);
      ASSERT_TRUE(same_bits(some, std::span(all).first(some.size()))) << group;
    }
  }
}

/// Rows of trees, chains and prompts, whose heads share tiles in any way.
TEST_P(KernelsTest, AttendOfARowDoesNotDependOnTheRowsBesideIt) {
  for (const CacheType type : kCacheTypes) {
    std::mt19937 generator(8);
    for (const int head_size : {8, 40, 64}) {
      for (const int group : {1, 2, 3, 4, 7}) {
        for (const bool chain : {false, true}) {
          const int committed = static_cast<int>(generator() % 150);
          const int rows = 1 + static_cast<int>(generator() % (chain ? 90 : 24));
          SCOPED_TRACE(testing::Message() << head_size << ' ' << group << ' ' << chain << ' '
                                          << committed << ' ' << rows);
          const std::vector<float> keys =
              random_values(std::size_t(committed + rows) * head_size, 1);
          const std::vector<float> values =
              random_values(std::size_t(committed + rows) * head_size, 2);
          const std::vector<float> queries =
              random_values(std::size_t(rows) * group * head_size, 3);
          const PagePart part = {type, head_size};
          KvPages pages(kernels_, part), scratch(kernels_, part);
          for (int i = 0; i < committed; ++i) {
            pages.put(i, &keys[std::size_t(i) * head_size], &values[std::size_t(i) * head_size]);
          }
          // As the engine lays them out, or anyhow.
          std::vector<std::int32_t> slot_of = random_slots(rows, generator);
          if (generator() % 4 != 0) std::iota(slot_of.begin(), slot_of.end(), committed % 64);
          std::vector<std::vector<std::int32_t>> slots(rows);
          for (int row = 0; row < rows; ++row) {
            const std::size_t at = std::size_t(committed + row) * head_size;
            scratch.put(slot_of[row], &keys[at], &values[at]);
            if (row > 0 && (chain || generator() % 6 != 0)) {
              slots[row] = slots[chain ? row - 1 : generator() % row];
              if (!chain && generator() % 4 == 0) slots[row].back() = kNoSlot;
            }
            slots[row].push_back(slot_of[row]);
          }
          const std::vector<const std::byte*> page_pointers = pages.pointers();
          const std::vector<const std::byte*> scratch_pointers = scratch.pointers();
          std::vector<float> alone(queries.size() + 1, 7.0f), together = alone;
          const int window = std::array{0, 1, 13, 64, 100}[generator() % 5];
          const auto attend = [&](std::vector<float>& out, int first, int end) {
            std::vector<AttentionHead> heads;
            for (int head = first; head < end; ++head) {
              heads.push_back({.query = &queries[std::size_t(head) * head_size],
                               .out = &out[std::size_t(head) * head_size],
                               .slots = slots[head / group]});
            }
            kernels_.attend({.heads = heads,
                             .part = part,
                             .scale = 0.2f,
                             .softcap = 0,
                             .window = window,
                             .offset = KvPages::kOffset,
                             .pages = page_pointers,
                             .committed = committed,
                             .scratch = scratch_pointers});
          };
          for (int head = 0; head < rows * group; ++head) attend(alone, head, head + 1);
          for (int first = 0; first < rows * group;) {
            const int end = first + 1 + static_cast<int>(generator() % (rows * group - first));
            attend(together, first, end);
            first = end;
          }
          ASSERT_TRUE(same_bits(together, alone));
        }
      }
    }
  }
}

// ---- across instruction sets ----

/// All sets with fused multiply-add round alike, and so do CPUs of other makes: what they give is
/// compared by its hash (FNV-1a). A change of the operations or their order changes it rightfully.
TEST_P(KernelsTest, GivesTheSameBitsOnEveryCpu) {
  if (GetParam() == "portable") GTEST_SKIP() << "it rounds products before it adds them";
  std::map<std::string, std::uint32_t> hashes;
  const auto enter = [&](const std::string& what, std::span<const float> values) {
    std::uint32_t& hash = hashes.try_emplace(what, 2166136261u).first->second;
    for (const float value : values) {
      const auto bits = std::bit_cast<std::uint32_t>(value);
      for (int shift = 0; shift < 32; shift += 8) hash = (hash ^ (bits >> shift & 255)) * 16777619u;
    }
  };

  for (const ggml_type type : kMatrixTypes) {
    // ggml's quantised bytes depend on its compiler; without the second highest bit of an exponent
    // no float is infinite.
    RandomTensor random(type, 53, 768, 1);
    std::mt19937 generator(2);
    for (std::byte& byte : random.bytes()) byte = static_cast<std::byte>(generator() & 0xbf);
    enter(ggml_type_name(type), product(PackedMatrix(random.tensor()), activations(5, 768)));
  }
  for (const int head_size : {40, 64}) {
    std::vector<std::int32_t> slots(60);
    std::iota(slots.begin(), slots.end(), 20);
    slots[7] = kNoSlot;
    enter("attend", Attention(kernels_, CacheType::kF16, 3, head_size, 150).run(90, slots));
    Attention windowed(kernels_, CacheType::kF16, 3, head_size, 150);
    windowed.window = 75;
    windowed.softcap = 2.0f;
    enter("attend_window", windowed.run(90, slots));
    enter("attend_q8_0", Attention(kernels_, CacheType::kQ8_0, 3, head_size, 150).run(90, slots));
  }
  const std::vector<float> a = random_values(1003, 1, 8.0f), b = random_values(1003, 2);
  std::vector<float> out(1003);
  kernels_.silu_multiply(a.data(), b.data(), 1003, out.data());
  enter("silu", out);
  kernels_.gelu_multiply(a.data(), b.data(), 1003, out.data());
  enter("gelu", out);
  kernels_.soft_cap(out.data(), 3.0f, 1003);
  enter("soft_cap", out);
  kernels_.add_scaled(a.data(), 0.3f, b.data(), 1003, out.data());
  enter("add_scaled", out);
  const float inverse = kernels_.inverse_rms(a.data(), 1e-5f, 1003);
  kernels_.scale(a.data(), inverse, b.data(), 1003, out.data());
  enter("norm", out);
  for (const bool interleaved : {true, false}) {
    kernels_.rope(out.data(), a.data(), b.data(), 80, interleaved);
    enter("rope", out);
  }
  enter("dot", std::vector{kernels_.dot(a.data(), b.data(), 1003)});
  const ExpSum sum = kernels_.sum_exp(a.data(), 1003);
  enter("sum_exp", std::vector{sum.largest, sum.sum});

  std::map<std::string, std::uint32_t> expected = {
      {"add_scaled", 1228951262u},    {"attend", 3281389386u},   {"attend_q8_0", 570376874u},
      {"attend_window", 3511330331u}, {"bf16", 316987444u},      {"dot", 1183335142u},
      {"f16", 1251425164u},           {"f32", 1313480381u},      {"gelu", 3209562939u},
      {"iq4_nl", 885183646u},         {"iq4_xs", 36426009u},     {"mxfp4", 588991158u},
      {"norm", 3165237906u},          {"q2_K", 4152379838u},     {"q3_K", 1198837726u},
      {"q4_0", 4064269198u},          {"q4_1", 65998736u},       {"q4_K", 3955765188u},
      {"q5_0", 2693008202u},          {"q5_1", 1646749793u},     {"q5_K", 1712809017u},
      {"q6_K", 2666309733u},          {"q8_0", 3545491619u},     {"rope", 2289489309u},
      {"silu", 3016622304u},          {"soft_cap", 2196974870u}, {"sum_exp", 3632455047u}};
  // BF16 dot products round otherwise, and only some CPUs have them.
  if (kernels_.form(WeightKind::kBF16) == ActivationForm::kBf16) {
    hashes.erase("bf16");
    expected.erase("bf16");
  }
  EXPECT_EQ(hashes, expected);
}

// ---- choice of the instruction set ----

TEST(KernelsChoice, IsPortableLast) {
  ASSERT_FALSE(available_isas().empty());
  EXPECT_EQ(available_isas().back(), "portable");
  for (const std::string& isa : available_isas()) EXPECT_EQ(kernels(isa).isa, isa);
}

TEST(KernelsChoice, RefusesAnUnknownSet) {
  const std::string message = error_of([] { kernels("mmx"); });
  EXPECT_THAT(message, testing::HasSubstr("mmx"));
  for (const std::string& isa : available_isas()) EXPECT_THAT(message, testing::HasSubstr(isa));
}

TEST(KernelsChoice, FollowsTheEnvironment) {
  setenv("FIRP_ISA", "portable", 1);
  EXPECT_STREQ(default_kernels().isa, "portable");
  setenv("FIRP_ISA", "mmx", 1);
  EXPECT_THAT(error_of([] { default_kernels(); }), testing::HasSubstr("mmx"));
  unsetenv("FIRP_ISA");
  EXPECT_EQ(default_kernels().isa, available_isas().front());
}

}  // namespace
}  // namespace firp
