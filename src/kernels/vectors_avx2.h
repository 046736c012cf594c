// AVX2 with FMA and F16C: 16 lanes are two 256-bit registers. Included by kernels_avx2.cpp and
// kernels_avx_vnni.cpp, inside their anonymous namespaces (kernels_body.h says what for).

struct F32x16 {
  __m256 low, high;
};
struct I32x16 {
  __m256i low, high;
};
using Codes = I32x16;
#define FIRP_EXPAND_CODES

constexpr int kFewFloatBlocks = 2;
constexpr int kWideFloatBlocks = 2;
constexpr int kAttentionHeads = 6;
constexpr int kAttentionVectors = 1;

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
inline F32x16 load_bytes(const std::byte* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
/// As floats, 2^n has n + 127 in bit 23 and above; the two below 2^-126 have one bit lower down.
inline __m256i powers_of_half(__m128i bytes) {
  const __m256i n = _mm256_cvtepu8_epi32(bytes);
  const __m256i one = _mm256_set1_epi32(1);
  return _mm256_max_epi32(_mm256_slli_epi32(_mm256_sub_epi32(n, one), 23),
                          _mm256_slli_epi32(_mm256_add_epi32(n, one), 21));
}
inline F32x16 load_powers(const std::byte* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(powers_of_half(bytes)),
          _mm256_castsi256_ps(powers_of_half(_mm_srli_si128(bytes, 8)))};
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
inline bool any_at_least(F32x16 x, float limit) {
  const __m256 l = _mm256_set1_ps(limit);
  return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(x.low, l, _CMP_GE_OQ),
                                         _mm256_cmp_ps(x.high, l, _CMP_GE_OQ))) != 0;
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
inline __m256 turn_four(__m256 x, const float* cosines, const float* sines) {
  const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  const __m256 cosine =
      _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(cosines)), twice);
  const __m256 sine = _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(sines)), twice);
  return _mm256_addsub_ps(_mm256_mul_ps(x, cosine),
                          _mm256_mul_ps(_mm256_permute_ps(x, 0xB1), sine));
}
inline F32x16 turn_neighbours(F32x16 x, const float* cosines, const float* sines) {
  return {turn_four(x.low, cosines, sines), turn_four(x.high, cosines + 4, sines + 4)};
}
/// Stores codes as bytes; returns their sum.
inline int store_codes(std::int8_t* p, I32x16 x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xD8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  const __m256i eight = _mm256_add_epi32(x.low, x.high);
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
}

inline Codes load_codes(const std::byte* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline void store_code_bytes(std::byte* p, Codes x) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(p), x.low);
  _mm256_store_si256(reinterpret_cast<__m256i*>(p + 32), x.high);
}
/// There are too few of them.
inline Codes in_register(Codes x) { return x; }
inline Codes shifted(Codes x, int left) {
  using Words = unsigned short [[gnu::vector_size(32)]];
  const auto half = [left](__m256i bytes) {
    const auto words = reinterpret_cast<Words>(bytes);
    return reinterpret_cast<__m256i>(left < 0 ? words >> -left : words << left);
  };
  return {half(x.low), half(x.high)};
}
inline Codes masked(Codes x, int bits) {
  const __m256i mask = _mm256_set1_epi8(static_cast<char>(bits));
  return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
}
inline Codes or_masked(Codes a, Codes b, int bits) {
  const Codes more = masked(b, bits);
  return {_mm256_or_si256(a.low, more.low), _mm256_or_si256(a.high, more.high)};
}
inline Codes looked_up(Codes x, const std::uint8_t* table) {
  const __m256i entries =
      _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(entries, x.low), _mm256_shuffle_epi8(entries, x.high)};
}
inline F32x16 even_bf16(Codes pairs) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs.low, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(pairs.high, 16))};
}
inline F32x16 odd_bf16(Codes pairs) {
  const __m256i mask = _mm256_set1_epi32(-65536);
  return {_mm256_castsi256_ps(_mm256_and_si256(pairs.low, mask)),
          _mm256_castsi256_ps(_mm256_and_si256(pairs.high, mask))};
}
/// zero, a power of two or 0, times minus_sum.
inline I32x16 zero_times(int zero, int minus_sum) {
  if (zero == 0) return splat_int(0);
  const __m256i lanes = _mm256_slli_epi32(_mm256_set1_epi32(minus_sum), __builtin_ctz(zero));
  return {lanes, lanes};
}
inline __m256i broadcast4(const std::int8_t* x) {
  int four;
  __builtin_memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}
