// NEON with the dot products of unsigned and signed bytes (FEAT_I8MM). Its matrix products take
// eight inputs of an output side by side, and the packed layout has four.

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
constexpr int kDotZero = 128;

template <int kBits>
inline int32x4_t dot(int32x4_t sum, uint8x16_t codes, int8x16_t four) {
  return vusdotq_s32(sum, codes, four);
}
template <int kBits>
using DotSum = LaneSum<kBits>;

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsNeonI8mm = table("neon_i8mm");

}  // namespace firp
