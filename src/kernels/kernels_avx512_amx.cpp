// AVX-512 with VNNI and BF16, and AMX: BF16 weights are multiplied tile by tile.

#include <immintrin.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

#include "kernels/vectors_avx512.h"

#define FIRP_DOT_BF16
#define FIRP_AMX
inline void store_bf16(std::uint16_t* p, F32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsAvx512Amx = table("avx512_amx");

}  // namespace firp
