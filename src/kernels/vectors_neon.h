// NEON (AArch64's Advanced SIMD): 16 lanes are four 128-bit registers. Included by the
// kernels_neon*.cpp, inside their anonymous namespaces (kernels_body.h says what for).

struct F32x16 {
  float32x4_t part[4];
};
struct I32x16 {
  int32x4_t part[4];
};
struct Codes {
  uint8x16_t part[4];
};

constexpr int kFewFloatBlocks = 2;
constexpr int kWideFloatBlocks = 2;
constexpr int kAttentionHeads = 6;
constexpr int kAttentionVectors = 1;

/// function of the parts of each argument, part by part.
template <typename Result, typename Function, typename... Arguments>
inline Result each(Function function, const Arguments&... x) {
  return {{function(x.part[0]...), function(x.part[1]...), function(x.part[2]...),
           function(x.part[3]...)}};
}

inline F32x16 splat(float x) {
  const float32x4_t four = vdupq_n_f32(x);
  return {{four, four, four, four}};
}
inline F32x16 load(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
inline void store(float* p, F32x16 x) {
  vst1q_f32(p, x.part[0]);
  vst1q_f32(p + 4, x.part[1]);
  vst1q_f32(p + 8, x.part[2]);
  vst1q_f32(p + 12, x.part[3]);
}
inline F32x16 load_half(const Half* p) {
  const float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(p));
  const float16x8_t high = vreinterpretq_f16_u16(vld1q_u16(p + 8));
  return {{vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low),
           vcvt_f32_f16(vget_low_f16(high)), vcvt_high_f32_f16(high)}};
}
inline void store_half(Half* p, F32x16 x) {
  vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.part[0]), x.part[1])));
  vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.part[2]), x.part[3])));
}
inline F32x16 load_bytes(const std::byte* p) {
  const int8x16_t bytes = vld1q_s8(reinterpret_cast<const std::int8_t*>(p));
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes));
  const int16x8_t high = vmovl_high_s8(bytes);
  return {{vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_high_s16(low)),
           vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_high_s16(high))}};
}
/// As floats, 2^n has n + 127 in bit 23 and above; the two below 2^-126 have one bit lower down.
inline float32x4_t powers_of_quarter(uint16x4_t bytes) {
  const int32x4_t n = vreinterpretq_s32_u32(vmovl_u16(bytes));
  const int32x4_t one = vdupq_n_s32(1);
  return vreinterpretq_f32_s32(
      vmaxq_s32(vshlq_n_s32(vsubq_s32(n, one), 23), vshlq_n_s32(vaddq_s32(n, one), 21)));
}
inline F32x16 load_powers(const std::byte* p) {
  const uint8x16_t bytes = vld1q_u8(reinterpret_cast<const std::uint8_t*>(p));
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes));
  const uint16x8_t high = vmovl_high_u8(bytes);
  return {{powers_of_quarter(vget_low_u16(low)), powers_of_quarter(vget_high_u16(low)),
           powers_of_quarter(vget_low_u16(high)), powers_of_quarter(vget_high_u16(high))}};
}
inline F32x16 add(F32x16 a, F32x16 b) {
  return each<F32x16>([](float32x4_t x, float32x4_t y) { return vaddq_f32(x, y); }, a, b);
}
inline F32x16 sub(F32x16 a, F32x16 b) {
  return each<F32x16>([](float32x4_t x, float32x4_t y) { return vsubq_f32(x, y); }, a, b);
}
inline F32x16 mul(F32x16 a, F32x16 b) {
  return each<F32x16>([](float32x4_t x, float32x4_t y) { return vmulq_f32(x, y); }, a, b);
}
inline F32x16 div(F32x16 a, F32x16 b) {
  return each<F32x16>([](float32x4_t x, float32x4_t y) { return vdivq_f32(x, y); }, a, b);
}
// Not fminnm and fmaxnm, which differ for signalling NaNs, a NaN as b, and zeros.
inline float32x4_t smaller(float32x4_t a, float32x4_t b) {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}
inline float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F32x16 min(F32x16 a, F32x16 b) { return each<F32x16>(smaller, a, b); }
inline F32x16 max(F32x16 a, F32x16 b) { return each<F32x16>(larger, a, b); }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return each<F32x16>(
      [](float32x4_t x, float32x4_t y, float32x4_t z) { return vfmaq_f32(z, x, y); }, a, b, c);
}
inline I32x16 splat_int(int x) {
  const int32x4_t four = vdupq_n_s32(x);
  return {{four, four, four, four}};
}
inline F32x16 to_float(I32x16 x) {
  return each<F32x16>([](int32x4_t n) { return vcvtq_f32_s32(n); }, x);
}
inline I32x16 to_int(F32x16 x) {
  return each<I32x16>([](float32x4_t v) { return vcvtnq_s32_f32(v); }, x);
}
inline F32x16 power_of_two(I32x16 n) {
  return each<F32x16>(
      [](int32x4_t power) {
        return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(power, vdupq_n_s32(127)), 23));
      },
      n);
}
inline F32x16 zero_where_below(F32x16 x, float limit, F32x16 value) {
  return each<F32x16>(
      [=](float32x4_t v, float32x4_t kept) {
        const uint32x4_t below = vcltq_f32(v, vdupq_n_f32(limit));
        return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(kept), below));
      },
      x, value);
}
inline bool any_at_least(F32x16 x, float limit) {
  const float32x4_t l = vdupq_n_f32(limit);
  const uint32x4_t low = vorrq_u32(vcgeq_f32(x.part[0], l), vcgeq_f32(x.part[1], l));
  const uint32x4_t high = vorrq_u32(vcgeq_f32(x.part[2], l), vcgeq_f32(x.part[3], l));
  return vmaxvq_u32(vorrq_u32(low, high)) != 0;
}
inline float reduce_add(F32x16 x) {
  const float32x4_t four =
      vaddq_f32(vaddq_f32(x.part[0], x.part[2]), vaddq_f32(x.part[1], x.part[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vpadds_f32(two);
}
inline float reduce_max(F32x16 x) {
  const float32x4_t four = larger(larger(x.part[0], x.part[2]), larger(x.part[1], x.part[3]));
  const float32x4_t two = larger(four, vextq_f32(four, four, 2));
  return vgetq_lane_f32(larger(two, vdupq_laneq_f32(two, 1)), 0);
}
/// Each of 8 numbers twice.
inline F32x16 load_twice(const float* p) {
  const float32x4_t low = vld1q_f32(p), high = vld1q_f32(p + 4);
  return {
      {vzip1q_f32(low, low), vzip2q_f32(low, low), vzip1q_f32(high, high), vzip2q_f32(high, high)}};
}
inline F32x16 turn_neighbours(F32x16 x, const float* cosines, const float* sines) {
  return each<F32x16>(
      [](float32x4_t pairs, float32x4_t cosine, float32x4_t sine) {
        const uint32x4_t minus = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000));
        const float32x4_t across = vmulq_f32(vrev64q_f32(pairs), sine);
        return vaddq_f32(vmulq_f32(pairs, cosine),
                         vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(across), minus)));
      },
      x, load_twice(cosines), load_twice(sines));
}
/// Stores codes as bytes; returns their sum.
inline int store_codes(std::int8_t* p, I32x16 x) {
  const int16x8_t low = vmovn_high_s32(vmovn_s32(x.part[0]), x.part[1]);
  const int16x8_t high = vmovn_high_s32(vmovn_s32(x.part[2]), x.part[3]);
  vst1q_s8(p, vmovn_high_s16(vmovn_s16(low), high));
  return vaddvq_s32(vaddq_s32(vaddq_s32(x.part[0], x.part[1]), vaddq_s32(x.part[2], x.part[3])));
}

inline Codes load_codes(const std::byte* p) {
  const auto* const at = reinterpret_cast<const std::uint8_t*>(p);
  return {{vld1q_u8(at), vld1q_u8(at + 16), vld1q_u8(at + 32), vld1q_u8(at + 48)}};
}
inline Codes in_register(Codes x) { return x; }
inline Codes shifted(Codes x, int left) {
  return each<Codes>([=](uint8x16_t b) -> uint8x16_t { return left < 0 ? b >> -left : b << left; },
                     x);
}
inline Codes masked(Codes x, int bits) {
  const uint8x16_t mask = vdupq_n_u8(static_cast<std::uint8_t>(bits));
  return each<Codes>([=](uint8x16_t b) { return vandq_u8(b, mask); }, x);
}
inline Codes or_masked(Codes a, Codes b, int bits) {
  return each<Codes>([](uint8x16_t x, uint8x16_t y) { return vorrq_u8(x, y); }, a, masked(b, bits));
}
inline Codes looked_up(Codes x, const std::uint8_t* table) {
  const uint8x16_t entries = vld1q_u8(table);
  return each<Codes>([=](uint8x16_t b) { return vqtbl1q_u8(entries, b); }, x);
}
inline F32x16 even_bf16(Codes pairs) {
  return each<F32x16>(
      [](uint8x16_t b) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(b), 16)); },
      pairs);
}
inline F32x16 odd_bf16(Codes pairs) {
  return each<F32x16>(
      [](uint8x16_t b) {
        return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(b), vdupq_n_u32(0xffff0000)));
      },
      pairs);
}
/// Codes of 2 to 6 bits as they are; those of 8 bits, stored + 128, without it.
template <int kBits>
inline int8x16_t signed_codes(uint8x16_t codes) {
  if constexpr (kBits < 8) return vreinterpretq_s8_u8(codes);
  return vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(0x80)));
}
inline int8x16_t broadcast4(const std::int8_t* x) {
  std::int32_t four;
  __builtin_memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/// sum + the dot products of 4 codes each, stored as packed_matrix.h says, with 4 activations.
/// Every NEON set has its own.
template <int kBits>
int32x4_t dot(int32x4_t sum, uint8x16_t codes, int8x16_t four);

/// Adds up in 32-bit lanes.
template <int kBits>
class LaneSum {
 public:
  LaneSum() = default;
  LaneSum(int zero, int minus_sum) : lanes_(splat_int(zero * minus_sum)) {}
  void add(Codes codes, const std::int8_t* x) {
    const int8x16_t four = broadcast4(x);
    lanes_ = each<I32x16>(
        [=](int32x4_t sum, uint8x16_t code) { return dot<kBits>(sum, code, four); }, lanes_, codes);
  }
  I32x16 sum(int /*zero*/, int /*minus_sum*/) const { return lanes_; }

 private:
  I32x16 lanes_;
};
