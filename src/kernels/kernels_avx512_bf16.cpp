// AVX-512 with VNNI and BF16: BF16 weights are multiplied two inputs at a time.

#include <immintrin.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

// The second needs the first.
// clang-format off
#include "kernels/vectors_avx512.h"
#include "kernels/kernels_body.h"
// clang-format on

}  // namespace

const Kernels kKernelsAvx512Bf16 = table("avx512_bf16");

}  // namespace firp
