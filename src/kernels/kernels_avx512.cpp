// AVX-512 with VNNI.

#include <immintrin.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

#include "kernels/kernels_body.h"
#include "kernels/vectors_avx512.h"

}  // namespace

const Kernels kKernelsAvx512 = table("avx512");

}  // namespace firp
