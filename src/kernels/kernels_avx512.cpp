// AVX-512 with VNNI.

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

const Kernels kKernelsAvx512 = table("avx512");

}  // namespace firp
