#pragma once

#include "kernels/kernels.h"

namespace firp {

/// One table an instruction set, each from a file that is compiled for it.
extern const Kernels kKernelsPortable;
extern const Kernels kKernelsAvx2, kKernelsAvxVnni, kKernelsAvx512, kKernelsAvx512Bf16,
    kKernelsAvx512Amx;
extern const Kernels kKernelsNeon, kKernelsNeonDotprod, kKernelsNeonI8mm;

}  // namespace firp
