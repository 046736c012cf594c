#pragma once

#include <ggml.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>

namespace firp {

enum class WeightKind { kCodes, kF16, kBF16, kF32 };

/// What a group of codes is multiplied by.
enum class ScaleKind {
  kF16,
  kF16TimesByte,  ///< an F16 of 256 inputs times a signed byte of the group
  kPowerOfTwo,    ///< 2^(byte - 128)
};

/// A code's entry stands for it, and may be larger: value = scale * (entry - zero).
using Codebook = std::array<std::uint8_t, 16>;

/// A type of weights that our own engine multiplies. The value of a weight is scale * (code - zero)
/// + min, exactly the file's value. A scale, and a min, belongs to a group of inputs.
struct TensorType {
  ggml_type type;
  WeightKind kind;
  int bits = 0;                       ///< of a code: 2, 3, 4, 5, 6 or 8
  int group = 0;                      ///< inputs that share a scale (and min): 16 or 32
  ScaleKind scale = ScaleKind::kF16;  ///< and of the min, which is no power of two
  bool has_min = false;
  int zero = 0;            ///< the code that means 0: 0, or a power of two
  Codebook codebook = {};  ///< all 0: none

  constexpr bool has_codebook() const { return codebook != Codebook{}; }
  /// Bits of what a product multiplies: of a code, or of a codebook's largest entry.
  constexpr int product_bits() const {
    return has_codebook() ? std::bit_width(*std::ranges::max_element(codebook)) : bits;
  }
};

/// The values of IQ4_NL and IQ4_XS, + 128 (ggml-common.h: kvalues_iq4nl).
inline constexpr Codebook kIq4Codebook = {1,   24,  45,  63,  79,  93,  106, 118,
                                          129, 141, 153, 166, 181, 197, 217, 241};
/// The numbers of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), doubled, + 16
/// (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf).
inline constexpr Codebook kE2m1Codebook = {16, 17, 18, 19, 20, 22, 24, 28,
                                           16, 15, 14, 13, 12, 10, 8,  4};

/// The one list of the types that files, kernels, benchmarks and tests know.
inline constexpr TensorType kTensorTypes[] = {
    {GGML_TYPE_F32, WeightKind::kF32},
    {GGML_TYPE_F16, WeightKind::kF16},
    {GGML_TYPE_BF16, WeightKind::kBF16},
    {GGML_TYPE_Q4_0, WeightKind::kCodes, 4, 32, ScaleKind::kF16, false, 8},
    {GGML_TYPE_Q4_1, WeightKind::kCodes, 4, 32, ScaleKind::kF16, true, 0},
    {GGML_TYPE_Q5_0, WeightKind::kCodes, 5, 32, ScaleKind::kF16, false, 16},
    {GGML_TYPE_Q5_1, WeightKind::kCodes, 5, 32, ScaleKind::kF16, true, 0},
    {GGML_TYPE_Q8_0, WeightKind::kCodes, 8, 32, ScaleKind::kF16, false, 128},
    {GGML_TYPE_Q2_K, WeightKind::kCodes, 2, 16, ScaleKind::kF16TimesByte, true, 0},
    {GGML_TYPE_Q3_K, WeightKind::kCodes, 3, 16, ScaleKind::kF16TimesByte, false, 4},
    {GGML_TYPE_Q4_K, WeightKind::kCodes, 4, 32, ScaleKind::kF16TimesByte, true, 0},
    {GGML_TYPE_Q5_K, WeightKind::kCodes, 5, 32, ScaleKind::kF16TimesByte, true, 0},
    {GGML_TYPE_Q6_K, WeightKind::kCodes, 6, 16, ScaleKind::kF16TimesByte, false, 32},
    {GGML_TYPE_IQ4_NL, WeightKind::kCodes, 4, 32, ScaleKind::kF16, false, 128, kIq4Codebook},
    {GGML_TYPE_IQ4_XS, WeightKind::kCodes, 4, 32, ScaleKind::kF16TimesByte, false, 128,
     kIq4Codebook},
    {GGML_TYPE_MXFP4, WeightKind::kCodes, 4, 32, ScaleKind::kPowerOfTwo, false, 16, kE2m1Codebook},
};
inline constexpr std::size_t kTensorTypeCount = std::size(kTensorTypes);

/// ggml's types of the list, in its order.
inline constexpr auto kMatrixTypes = [] {
  std::array<ggml_type, kTensorTypeCount> types{};
  std::ranges::transform(kTensorTypes, types.begin(), &TensorType::type);
  return types;
}();

/// A type's place in the list; kTensorTypeCount where it has none.
constexpr std::size_t tensor_type_index(ggml_type type) {
  return static_cast<std::size_t>(std::ranges::find(kMatrixTypes, type) - kMatrixTypes.begin());
}
constexpr bool is_known(ggml_type type) { return tensor_type_index(type) < kTensorTypeCount; }

/// "f32, f16, ...": for errors.
std::string tensor_type_names();

}  // namespace firp
