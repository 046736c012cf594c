// NEON with the dot products of signed bytes (FEAT_DotProd).

#include <arm_neon.h>

#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

#include "kernels/vectors_neon.h"

constexpr int kWideRows = 3;
constexpr int kWideBlocks = 1;
constexpr int kNarrowRows = 3;
constexpr int kDotZero = 0;

template <int kBits>
class DotSum {
 public:
  DotSum() = default;
  DotSum(int zero, int minus_sum) : lanes_(splat_int(zero * minus_sum)) {}
  void add(Codes codes, const std::int8_t* x) {
    const int8x16_t four = broadcast4(x);
    lanes_ = each<I32x16>(
        [=](int32x4_t sum, uint8x16_t code) {
          return vdotq_s32(sum, signed_codes<kBits>(code), four);
        },
        lanes_, codes);
  }
  I32x16 sum(int /*start*/) const { return lanes_; }

 private:
  I32x16 lanes_;
};

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsNeonDotprod = table("neon_dotprod");

}  // namespace firp
