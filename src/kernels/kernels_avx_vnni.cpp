// AVX2 with the 256-bit dot product of AVX-VNNI.

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
constexpr int kDotZero = 128;

template <int kBits>
class DotSum {
 public:
  DotSum() = default;
  DotSum(int zero, int minus_sum) : low_(zero_times(zero, minus_sum).low), high_(low_) {}
  void add(Codes codes, const std::int8_t* x) {
    const __m256i four = broadcast4(x);
    low_ = _mm256_dpbusd_avx_epi32(low_, codes.low, four);
    high_ = _mm256_dpbusd_avx_epi32(high_, codes.high, four);
  }
  I32x16 sum(int /*zero*/, int /*minus_sum*/) const { return {low_, high_}; }

 private:
  __m256i low_, high_;
};

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsAvxVnni = table("avx_vnni");

}  // namespace firp
