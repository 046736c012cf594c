// NEON as every AArch64 CPU has it.

#include <arm_neon.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

#include "kernels/vectors_neon.h"

constexpr int kTileRows = 2;
constexpr int kRegisterSums = kTileRows;
constexpr int kFewRows = kTileRows;
constexpr int kFewProducts = 0;
constexpr int kWideBlocks = 1;
constexpr int kDotZero = 0;

/// Codes of up to 6 bits: the products of a whole group fit into 16 bits, one of every four inputs
/// in each.
template <int kBits>
class DotSum {
  static_assert([] {
    for (const TensorType& type : kTensorTypes) {
      if (type.product_bits() == kBits && ((1 << kBits) - 1) * 127 * (type.group / 4) > 32767) {
        return false;
      }
    }
    return true;
  }());

 public:
  DotSum() = default;
  DotSum(int /*zero*/, int /*minus_sum*/) {
    for (int i = 0; i < 4; ++i) low_[i] = high_[i] = vdupq_n_s16(0);
  }
  void add(Codes codes, const std::int8_t* x) {
    const int8x16_t four = broadcast4(x);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int8x16_t code = signed_codes<kBits>(codes.part[i]);
      low_[i] = vmlal_s8(low_[i], vget_low_s8(code), vget_low_s8(four));
      high_[i] = vmlal_high_s8(high_[i], code, four);
    }
  }
  I32x16 sum(int zero, int minus_sum) const {
    const int start = zero * minus_sum;
    return {{lanes(0, start), lanes(1, start), lanes(2, start), lanes(3, start)}};
  }

 private:
  int32x4_t lanes(int i, int start) const {
    return vaddq_s32(vdupq_n_s32(start), vpaddq_s32(vpaddlq_s16(low_[i]), vpaddlq_s16(high_[i])));
  }
  int16x8_t low_[4], high_[4];
};

/// 16 bits hold two products of 8 bits, at most 2 * 128 * 127.
template <int kBits>
inline int32x4_t dot(int32x4_t sum, uint8x16_t codes, int8x16_t four) {
  const int8x16_t code = signed_codes<kBits>(codes);
  const int16x8_t low = vmull_s8(vget_low_s8(code), vget_low_s8(four));
  return vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(code, four)));
}
template <>
class DotSum<8> : public LaneSum<8> {
 public:
  using LaneSum<8>::LaneSum;
};

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsNeon = table("neon");

}  // namespace firp
