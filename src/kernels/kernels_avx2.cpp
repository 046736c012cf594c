// AVX2 with FMA and F16C: 16 lanes are two 256-bit registers.

#include <immintrin.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

struct F32x16 {
  __m256 low, high;
};
struct I32x16 {
  __m256i low, high;
};
using Codes = I32x16;

constexpr int kManyRows = 2;
constexpr int kManyBlocks = 1;
constexpr int kFloatBlocks = 2;
constexpr int kDotZero = 0;

inline F32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
inline F32x16 load_half(const Half* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline __m256 load_bf16_half(const std::uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline F32x16 load_bf16(const std::uint16_t* p) {
  return {load_bf16_half(p), load_bf16_half(p + 8)};
}
inline void store_half(Half* p, F32x16 x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.low, kNearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.high, kNearest));
}
inline F32x16 add(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline F32x16 div(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline F32x16 min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline I32x16 splat_int(int x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline F32x16 to_float(I32x16 x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline I32x16 to_int(F32x16 x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline __m256 power_of_two_half(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
inline F32x16 power_of_two(I32x16 n) {
  return {power_of_two_half(n.low), power_of_two_half(n.high)};
}
inline F32x16 zero_where_below(F32x16 x, float limit, F32x16 value) {
  const __m256 l = _mm256_set1_ps(limit);
  return {_mm256_and_ps(_mm256_cmp_ps(x.low, l, _CMP_NLT_UQ), value.low),
          _mm256_and_ps(_mm256_cmp_ps(x.high, l, _CMP_NLT_UQ), value.high)};
}
inline float reduce_add(F32x16 x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(F32x16 x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
/// Stores codes as bytes; returns their sum.
inline int store_codes(std::int8_t* p, I32x16 x) {
  std::int32_t codes[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), x.low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 8), x.high);
  int sum = 0;
  for (int i = 0; i < 16; ++i) {
    p[i] = static_cast<std::int8_t>(codes[i]);
    sum += codes[i];
  }
  return sum;
}

inline Codes load_codes(const std::byte* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline Codes low_nibbles(Codes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
}
inline Codes high_nibbles(Codes x) {
  return low_nibbles({_mm256_srli_epi16(x.low, 4), _mm256_srli_epi16(x.high, 4)});
}
inline __m256i broadcast4(const std::int8_t* x) {
  int four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}
/// Pairs of u8 * s8 in 16 bits, then pairs of those in 32: at most 2 * 15 * 127, or 2 * 128 * 127.
inline __m256i dot4_half(__m256i sum, __m256i u, __m256i s) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
inline I32x16 dot4_small(I32x16 sum, Codes codes, const std::int8_t* x) {
  const __m256i four = broadcast4(x);
  return {dot4_half(sum.low, codes.low, four), dot4_half(sum.high, codes.high, four)};
}
/// Stored codes reach 255, where maddubs would saturate: take them signed, and move their sign to
/// the activation.
inline __m256i dot4_signed_half(__m256i sum, __m256i stored, __m256i x) {
  const __m256i code = _mm256_xor_si256(stored, _mm256_set1_epi8(-128));
  return dot4_half(sum, _mm256_abs_epi8(code), _mm256_sign_epi8(x, code));
}
inline I32x16 dot4(I32x16 sum, Codes codes, const std::int8_t* x) {
  const __m256i four = broadcast4(x);
  return {dot4_signed_half(sum.low, codes.low, four), dot4_signed_half(sum.high, codes.high, four)};
}

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsAvx2 = {"avx2", matmul,        quantize, rms_norm,
                              rope,   silu_multiply, store_kv, attend};

}  // namespace firp
