// AVX-512 with VNNI and BF16: BF16 weights are multiplied two inputs at a time.

#include <immintrin.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

#include "kernels/vectors_avx512.h"

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

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsAvx512Bf16 = table("avx512_bf16");

}  // namespace firp
