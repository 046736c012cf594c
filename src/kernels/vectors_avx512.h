// AVX-512 with VNNI, and BF16 where compiled for it: one 512-bit register is 16 lanes. Included by
// the kernels_avx512*.cpp, inside their anonymous namespaces (kernels_body.h says what for).

using F32x16 = __m512;
using I32x16 = __m512i;
using Codes = __m512i;

constexpr int kTileRows = 6;
constexpr int kRegisterSums = 12;
#ifdef FIRP_AMX
constexpr int kFewRows = 0;  // Intel's memory gives more to two streams of a thread,
constexpr int kFewProducts = 0;
#else
constexpr int kFewRows = 2;  // AMD's to one; but two blocks share what is done for their rows
constexpr int kFewProducts = 6144;
#endif
constexpr int kWideBlocks = 2;
constexpr int kFewFloatBlocks = 4;
constexpr int kWideFloatBlocks = 2;
constexpr int kAttentionHeads = 6;
constexpr int kAttentionVectors = 4;
constexpr int kDotZero = 128;

inline F32x16 splat(float x) { return _mm512_set1_ps(x); }
inline F32x16 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F32x16 x) { _mm512_storeu_ps(p, x); }
inline F32x16 load_half(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(Half* p, F32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F32x16 load_bytes(const std::byte* p) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
/// As floats, 2^n has n + 127 in bit 23 and above; the two below 2^-126 have one bit lower down.
inline F32x16 load_powers(const std::byte* p) {
  const __m512i n = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512i one = _mm512_set1_epi32(1);
  return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(_mm512_sub_epi32(n, one), 23),
                                              _mm512_slli_epi32(_mm512_add_epi32(n, one), 21)));
}
inline F32x16 add(F32x16 a, F32x16 b) { return _mm512_add_ps(a, b); }
inline F32x16 sub(F32x16 a, F32x16 b) { return _mm512_sub_ps(a, b); }
inline F32x16 mul(F32x16 a, F32x16 b) { return _mm512_mul_ps(a, b); }
inline F32x16 div(F32x16 a, F32x16 b) { return _mm512_div_ps(a, b); }
inline F32x16 min(F32x16 a, F32x16 b) { return _mm512_min_ps(a, b); }
inline F32x16 max(F32x16 a, F32x16 b) { return _mm512_max_ps(a, b); }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return _mm512_fmadd_ps(a, b, c); }
inline I32x16 splat_int(int x) { return _mm512_set1_epi32(x); }
inline F32x16 to_float(I32x16 x) { return _mm512_cvtepi32_ps(x); }
inline I32x16 to_int(F32x16 x) { return _mm512_cvtps_epi32(x); }
inline F32x16 power_of_two(I32x16 n) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, splat_int(127)), 23));
}
inline F32x16 zero_where_below(F32x16 x, float limit, F32x16 value) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, splat(limit), _CMP_NLT_UQ), value);
}
inline bool any_at_least(F32x16 x, float limit) {
  return _mm512_cmp_ps_mask(x, splat(limit), _CMP_GE_OQ) != 0;
}
inline float reduce_add(F32x16 x) { return _mm512_reduce_add_ps(x); }
inline float reduce_max(F32x16 x) { return _mm512_reduce_max_ps(x); }
/// Each of 8 numbers twice.
inline F32x16 load_twice(const float* p) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7),
                               _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}
inline F32x16 turn_neighbours(F32x16 x, const float* cosines, const float* sines) {
  const F32x16 along = mul(x, load_twice(cosines));
  const F32x16 across = mul(_mm512_permute_ps(x, 0xB1), load_twice(sines));
  return _mm512_mask_sub_ps(add(along, across), 0x5555, along, across);
}
/// Stores codes as bytes; returns their sum.
inline int store_codes(std::int8_t* p, I32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x));
  return _mm512_reduce_add_epi32(x);
}

inline Codes load_codes(const std::byte* p) { return _mm512_loadu_si512(p); }
/// Loaded once for all uses: as an operand of each, it would wait for its cache line each time.
inline Codes in_register(Codes x) {
  asm("" : "+v"(x));
  return x;
}
inline Codes shifted(Codes x, int left) {
  using Words = unsigned short [[gnu::vector_size(64)]];
  const auto words = reinterpret_cast<Words>(x);
  return reinterpret_cast<Codes>(left < 0 ? words >> -left : words << left);
}
inline Codes masked(Codes x, int bits) {
  return _mm512_and_si512(x, _mm512_set1_epi8(static_cast<char>(bits)));
}
inline Codes or_masked(Codes a, Codes b, int bits) {
  return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8(static_cast<char>(bits)), 0xF8);
}
inline Codes looked_up(Codes x, const std::uint8_t* table) {
  const __m512i entries =
      _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
  return _mm512_shuffle_epi8(entries, x);
}
inline F32x16 even_bf16(Codes pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline F32x16 odd_bf16(Codes pairs) {
  return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}

#ifdef __AVX512BF16__
#define FIRP_DOT_BF16
inline F32x16 dot_bf16(F32x16 sum, Codes pairs, const std::uint16_t* x) {
  int pair;
  __builtin_memcpy(&pair, x, 4);
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(pairs),
                          reinterpret_cast<__m512bh>(splat_int(pair)));
}
inline void store_bf16(std::uint16_t* p, F32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}
#endif

template <int kBits>
class DotSum {
 public:
  DotSum() = default;
  /// Starts at zero, a power of two or 0, times minus_sum.
  DotSum(int zero, int minus_sum)
      : lanes_(zero == 0 ? splat_int(0)
                         : _mm512_slli_epi32(splat_int(minus_sum), __builtin_ctz(zero))) {}
  void add(Codes codes, const std::int8_t* x) {
    int four;
    __builtin_memcpy(&four, x, 4);
    asm("vpdpbusd %2, %1, %0" : "+v"(lanes_) : "v"(codes), "v"(splat_int(four)));
  }
  I32x16 sum(int /*zero*/, int /*minus_sum*/) const { return lanes_; }

 private:
  I32x16 lanes_;
};
