// NEON with the dot products of signed bytes (FEAT_DotProd).

#include <arm_neon.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

#include "kernels/vectors_neon.h"

constexpr int kTileRows = 3;
constexpr int kRegisterSums = kTileRows;
constexpr int kFewRows = kTileRows;
constexpr int kFewProducts = 0;
constexpr int kWideBlocks = 1;
constexpr int kDotZero = 0;

template <int kBits>
inline int32x4_t dot(int32x4_t sum, uint8x16_t codes, int8x16_t four) {
  return vdotq_s32(sum, signed_codes<kBits>(codes), four);
}
template <int kBits>
using DotSum = LaneSum<kBits>;

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsNeonDotprod = table("neon_dotprod");

}  // namespace firp
