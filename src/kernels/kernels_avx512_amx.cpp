// AVX-512 with VNNI and BF16, and AMX: BF16 weights are multiplied tile by tile.

#include <immintrin.h>

#include <utility>

#include "kernels/amx_shapes.h"
#include "kernels/isa_tables.h"

namespace firp {
namespace {

#define FIRP_AMX
// The second needs the first.
// clang-format off
#include "kernels/vectors_avx512.h"
#include "kernels/kernels_body.h"
// clang-format on

}  // namespace

const Kernels kKernelsAvx512Amx = table("avx512_amx");

}  // namespace firp
