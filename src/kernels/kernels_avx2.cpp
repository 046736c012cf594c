// AVX2 with FMA and F16C.

#include <immintrin.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

#include "kernels/vectors_avx2.h"

constexpr int kTileRows = 4;
constexpr int kRegisterSums = 2;
constexpr int kFewRows = kTileRows;
constexpr int kFewProducts = 0;
constexpr int kWideBlocks = 1;
constexpr int kDotZero = 0;

inline __m256i pairs_to_lanes(__m256i pairs) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

/// sum += codes * x in pairs of inputs, or the first of a sum. Written as assembly, since g++ 12
/// else moves products ahead of their sums, for which 16 registers are too few.
inline void add_products(__m256i& sum, __m256i codes, __m256i x, bool first) {
  if (first) {
    asm("vpmaddubsw %2, %1, %0" : "=x"(sum) : "x"(codes), "x"(x));
  } else {
    __m256i products;
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0"
        : "+x"(sum), "=&x"(products)
        : "x"(codes), "x"(x));
  }
}

/// Codes of up to 4 bits: the products of a whole group fit into 16 bits (8 * 2 * 15 * 127).
template <int kBits>
class DotSum {
 public:
  DotSum() = default;
  DotSum(int /*zero*/, int /*minus_sum*/) {}
  void add(Codes codes, const std::int8_t* x) {
    const __m256i four = broadcast4(x);
    add_products(low_, codes.low, four, first_);
    add_products(high_, codes.high, four, first_);
    first_ = false;
  }
  I32x16 sum(int zero, int minus_sum) const {
    const I32x16 start = zero_times(zero, minus_sum);
    return {_mm256_add_epi32(start.low, pairs_to_lanes(low_)),
            _mm256_add_epi32(start.high, pairs_to_lanes(high_))};
  }

 private:
  __m256i low_, high_;
  bool first_ = true;  // known to the compiler: loops over a group are unrolled
};

/// Codes of 5 and 6 bits: 16 bits hold the products of 4 or 2 vectors (4 * 2 * 31 * 127, 2 * 2 * 63
/// * 127), of which a group has a multiple.
template <int kBits>
requires(kBits == 5 || kBits == 6) class DotSum<kBits> {
 public:
  DotSum() = default;
  DotSum(int zero, int minus_sum) : low_(zero_times(zero, minus_sum).low), high_(low_) {}
  void add(Codes codes, const std::int8_t* x) {
    const __m256i four = broadcast4(x);
    add_products(low_pairs_, codes.low, four, count_ == 0);
    add_products(high_pairs_, codes.high, four, count_ == 0);
    if (++count_ < kMost) return;
    low_ = _mm256_add_epi32(low_, pairs_to_lanes(low_pairs_));
    high_ = _mm256_add_epi32(high_, pairs_to_lanes(high_pairs_));
    count_ = 0;
  }
  I32x16 sum(int /*zero*/, int /*minus_sum*/) const { return {low_, high_}; }

 private:
  static constexpr int kMost = kBits == 5 ? 4 : 2;
  __m256i low_, high_, low_pairs_, high_pairs_;
  int count_ =
      0;  // of vectors in the pairs: known to the compiler, loops over a group are unrolled
};

/// Codes of 8 bits: 16 bits hold two products, at most 2 * 128 * 127. Stored codes reach 255, where
/// vpmaddubsw would saturate: they are taken signed, and their sign is moved to the activation.
template <int kBits>
requires(kBits == 8) class DotSum<kBits> {
 public:
  DotSum() = default;
  DotSum(int /*zero*/, int /*minus_sum*/) {}
  void add(Codes codes, const std::int8_t* x) {
    const __m256i four = broadcast4(x);
    add_signed(low_, _mm256_xor_si256(codes.low, _mm256_set1_epi8(-128)), four);
    add_signed(high_, _mm256_xor_si256(codes.high, _mm256_set1_epi8(-128)), four);
    first_ = false;
  }
  I32x16 sum(int /*zero*/, int /*minus_sum*/) const { return {low_, high_}; }

 private:
  void add_signed(__m256i& sum, __m256i code, __m256i x) const {
    const __m256i size = _mm256_abs_epi8(code);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i products;
    if (first_) {
      asm("vpsignb %2, %3, %0\n\tvpmaddubsw %0, %1, %0\n\tvpmaddwd %4, %0, %0"
          : "=&x"(sum)
          : "x"(size), "x"(code), "x"(x), "x"(ones));
    } else {
      asm("vpsignb %3, %4, %1\n\tvpmaddubsw %1, %2, %1\n\tvpmaddwd %5, %1, %1\n\t"
          "vpaddd %1, %0, %0"
          : "+x"(sum), "=&x"(products)
          : "x"(size), "x"(code), "x"(x), "x"(ones));
    }
  }
  __m256i low_, high_;
  bool first_ = true;
};

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsAvx2 = table("avx2");

}  // namespace firp
