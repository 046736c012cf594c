// Any CPU, in plain C++: the scalar reference, and what runs where there is nothing better.

#include <bit>
#include <cmath>
#include <utility>

#include "kernels/isa_tables.h"

namespace firp {
namespace {

struct F32x16 {
  float lane[16];
};
struct I32x16 {
  std::int32_t lane[16];
};
struct Codes {
  std::uint8_t byte[64];
};

constexpr int kTileRows = 1;
constexpr int kRegisterSums = kTileRows;
constexpr int kFewRows = kTileRows;
constexpr int kFewProducts = 0;
constexpr int kWideBlocks = 1;
constexpr int kFewFloatBlocks = 1;
constexpr int kWideFloatBlocks = 1;
constexpr int kAttentionHeads = 2;
constexpr int kAttentionVectors = 1;
constexpr int kDotZero = 128;

template <typename Result, typename Function>
inline Result each(Function function) {
  Result result;
  for (int i = 0; i < 16; ++i) result.lane[i] = function(i);
  return result;
}

inline float half_to_float(Half h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(h & 0x7fff) << 13;
  // The exponents' biases differ by 112; multiplying normalises what is subnormal in F16.
  const float scaled = std::bit_cast<float>(rest) * 0x1p112f;
  const bool special = (h & 0x7c00) == 0x7c00;
  return std::bit_cast<float>(
      sign | (special ? (rest | 0x7f800000u) : std::bit_cast<std::uint32_t>(scaled)));
}

/// Rounds to nearest even.
inline Half float_to_half(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<Half>(bits >> 16 & 0x8000);
  const std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;   // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds beyond 65504
  if (magnitude < 0x38800000) {                       // subnormal: the unit is 2^-24
    return sign | static_cast<Half>(std::nearbyint(std::bit_cast<float>(magnitude) * 0x1p24f));
  }
  const std::uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return sign | static_cast<Half>((rounded - 0x38000000) >> 13);
}

inline F32x16 splat(float x) {
  return each<F32x16>([=](int) { return x; });
}
inline F32x16 load(const float* p) {
  return each<F32x16>([=](int i) { return p[i]; });
}
inline void store(float* p, F32x16 x) {
  for (int i = 0; i < 16; ++i) p[i] = x.lane[i];
}
inline F32x16 load_half(const Half* p) {
  return each<F32x16>([=](int i) { return half_to_float(p[i]); });
}
inline F32x16 load_bytes(const std::byte* p) {
  return each<F32x16>([=](int i) { return static_cast<float>(static_cast<std::int8_t>(p[i])); });
}
/// As floats, 2^n has n + 127 in bit 23 and above; the two below 2^-126 have one bit lower down.
inline F32x16 load_powers(const std::byte* p) {
  return each<F32x16>([=](int i) {
    const auto n = static_cast<std::uint32_t>(p[i]);
    return std::bit_cast<float>(n < 2 ? (n + 1) << 21 : (n - 1) << 23);
  });
}
inline void store_half(Half* p, F32x16 x) {
  for (int i = 0; i < 16; ++i) p[i] = float_to_half(x.lane[i]);
}
inline F32x16 add(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline F32x16 div(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline F32x16 min(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return each<F32x16>([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
/// Two roundings: a CPU without fused multiply-add would need a library call for each.
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each<F32x16>([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline I32x16 splat_int(int x) {
  return each<I32x16>([=](int) { return x; });
}
inline F32x16 to_float(I32x16 x) {
  return each<F32x16>([&](int i) { return static_cast<float>(x.lane[i]); });
}
inline I32x16 to_int(F32x16 x) {
  // Adding 1.5 * 2^23 leaves the nearest integer (to even) in the low bits; |x| < 2^22 here.
  return each<I32x16>(
      [&](int i) { return std::bit_cast<std::int32_t>(x.lane[i] + 12582912.0f) - 0x4b400000; });
}
inline F32x16 power_of_two(I32x16 n) {
  return each<F32x16>([&](int i) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(n.lane[i] + 127) << 23);
  });
}
inline F32x16 zero_where_below(F32x16 x, float limit, F32x16 value) {
  return each<F32x16>([&](int i) { return x.lane[i] < limit ? 0.0f : value.lane[i]; });
}
inline bool any_at_least(F32x16 x, float limit) {
  for (const float lane : x.lane) {
    if (lane >= limit) return true;
  }
  return false;
}
inline float reduce_add(F32x16 x) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x.lane[i] += x.lane[i + width];
  }
  return x.lane[0];
}
inline float reduce_max(F32x16 x) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) {
      x.lane[i] = x.lane[i] > x.lane[i + width] ? x.lane[i] : x.lane[i + width];
    }
  }
  return x.lane[0];
}
inline F32x16 turn_neighbours(F32x16 x, const float* cosines, const float* sines) {
  return each<F32x16>([&](int i) {
    const float along = x.lane[i] * cosines[i / 2];
    const float across = x.lane[i ^ 1] * sines[i / 2];
    return i % 2 == 0 ? along - across : along + across;
  });
}
/// Stores codes as bytes; returns their sum.
inline int store_codes(std::int8_t* p, I32x16 x) {
  int sum = 0;
  for (int i = 0; i < 16; ++i) {
    p[i] = static_cast<std::int8_t>(x.lane[i]);
    sum += x.lane[i];
  }
  return sum;
}

inline Codes load_codes(const std::byte* p) {
  Codes codes;
  __builtin_memcpy(codes.byte, p, 64);
  return codes;
}
inline Codes in_register(Codes x) { return x; }
inline Codes shifted(Codes x, int left) {
  for (std::uint8_t& byte : x.byte) {
    byte = static_cast<std::uint8_t>(left < 0 ? byte >> -left : byte << left);
  }
  return x;
}
inline Codes masked(Codes x, int bits) {
  for (std::uint8_t& byte : x.byte) byte &= bits;
  return x;
}
inline Codes or_masked(Codes a, const Codes& b, int bits) {
  for (int i = 0; i < 64; ++i) a.byte[i] |= b.byte[i] & bits;
  return a;
}
inline Codes looked_up(Codes x, const std::uint8_t* table) {
  for (std::uint8_t& byte : x.byte) byte = table[byte];
  return x;
}
inline F32x16 even_bf16(const Codes& pairs) {
  return each<F32x16>([&](int i) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(pairs.byte[4 * i]) << 16 |
                                static_cast<std::uint32_t>(pairs.byte[4 * i + 1]) << 24);
  });
}
inline F32x16 odd_bf16(const Codes& pairs) {
  return each<F32x16>([&](int i) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(pairs.byte[4 * i + 2]) << 16 |
                                static_cast<std::uint32_t>(pairs.byte[4 * i + 3]) << 24);
  });
}

template <int kBits>
class DotSum {
 public:
  DotSum() = default;
  DotSum(int zero, int minus_sum) : lanes_(splat_int(zero * minus_sum)) {}
  void add(const Codes& codes, const std::int8_t* x) {
    for (int i = 0; i < 16; ++i) {
      lanes_.lane[i] += codes.byte[4 * i] * x[0] + codes.byte[4 * i + 1] * x[1] +
                        codes.byte[4 * i + 2] * x[2] + codes.byte[4 * i + 3] * x[3];
    }
  }
  const I32x16& sum(int /*zero*/, int /*minus_sum*/) const { return lanes_; }

 private:
  I32x16 lanes_;
};

#include "kernels/kernels_body.h"

}  // namespace

const Kernels kKernelsPortable = table("portable");

}  // namespace firp
