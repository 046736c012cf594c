// AVX2 with FMA and F16C.

#include <immintrin.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

#include "kernels/vectors_avx2.h"

constexpr int kTileRows = 2;
constexpr int kFewRows = kTileRows;
constexpr int kFewProducts = 0;
constexpr int kWideBlocks = 1;
constexpr int kDotZero = 0;

inline __m256i pairs_to_lanes(__m256i pairs) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/// Codes of up to 4 bits: the products of a whole group fit into 16 bits (8 * 2 * 15 * 127).
template <int kBits>
class DotSum {
 public:
  DotSum() = default;
  DotSum(int /*zero*/, int /*minus_sum*/) : low_(_mm256_setzero_si256()), high_(low_) {}
  void add(Codes codes, const std::int8_t* x) {
    const __m256i four = broadcast4(x);
    low_ = _mm256_add_epi16(low_, _mm256_maddubs_epi16(codes.low, four));
    high_ = _mm256_add_epi16(high_, _mm256_maddubs_epi16(codes.high, four));
  }
  I32x16 sum(int start) const {
    const __m256i first = _mm256_set1_epi32(start);
    return {_mm256_add_epi32(first, pairs_to_lanes(low_)),
            _mm256_add_epi32(first, pairs_to_lanes(high_))};
  }

 private:
  __m256i low_, high_;
};

/// Codes of 5 and 6 bits: 16 bits hold the products of 4 or 2 vectors (4 * 2 * 31 * 127, 2 * 2 * 63
/// * 127), of which a group has a multiple.
template <int kBits>
requires(kBits == 5 || kBits == 6) class DotSum<kBits> {
 public:
  DotSum() = default;
  DotSum(int zero, int minus_sum) : low_(_mm256_set1_epi32(zero * minus_sum)), high_(low_) {}
  void add(Codes codes, const std::int8_t* x) {
    const __m256i four = broadcast4(x);
    const __m256i low = _mm256_maddubs_epi16(codes.low, four);
    const __m256i high = _mm256_maddubs_epi16(codes.high, four);
    low_pairs_ = count_ == 0 ? low : _mm256_add_epi16(low_pairs_, low);
    high_pairs_ = count_ == 0 ? high : _mm256_add_epi16(high_pairs_, high);
    if (++count_ < kMost) return;
    low_ = _mm256_add_epi32(low_, pairs_to_lanes(low_pairs_));
    high_ = _mm256_add_epi32(high_, pairs_to_lanes(high_pairs_));
    count_ = 0;
  }
  I32x16 sum(int /*start*/) const { return {low_, high_}; }

 private:
  static constexpr int kMost = kBits == 5 ? 4 : 2;
  __m256i low_, high_, low_pairs_, high_pairs_;
  int count_ =
      0;  // of vectors in the pairs: known to the compiler, loops over a group are unrolled
};

/// Codes of 8 bits: 16 bits hold two products, at most 2 * 128 * 127.
template <int kBits>
requires(kBits == 8) class DotSum<kBits> {
 public:
  DotSum() = default;
  DotSum(int zero, int minus_sum) : low_(_mm256_set1_epi32(zero * minus_sum)), high_(low_) {}
  void add(Codes codes, const std::int8_t* x) {
    const __m256i four = broadcast4(x);
    low_ = _mm256_add_epi32(low_, pairs_to_lanes(products(codes.low, four)));
    high_ = _mm256_add_epi32(high_, pairs_to_lanes(products(codes.high, four)));
  }
  I32x16 sum(int /*start*/) const { return {low_, high_}; }

 private:
  static __m256i products(__m256i codes, __m256i x) {
    // Stored codes reach 255, where maddubs would saturate: take them signed, and move their sign
    // to the activation.
    const __m256i code = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(x, code));
  }
  __m256i low_, high_;
};

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsAvx2 = table("avx2");

}  // namespace firp
