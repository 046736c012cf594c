// The arithmetic of every instruction set, written once over vectors of 16 lanes.
//
// Included by each kernels_<isa>.cpp inside its anonymous namespace, after it has defined:
//   F32x16, I32x16                       16 lanes
//   splat(float), load(const float*), store(float*, F32x16)
//   load_half(const Half*), store_half(Half*, F32x16)
//   load_bytes(const std::byte*): 16 signed bytes
//   load_powers(const std::byte*): 2^(byte - 128) of 16 bytes; the lowest two are subnormal
//   add, sub, mul, div, min, max, fma(a, b, c) = a * b + c
//     (min and max of a NaN and b are b)
//   splat_int(int), to_float(I32x16), to_int(F32x16) (nearest even), power_of_two(I32x16)
//   zero_where_below(x, limit, value): 0 in the lanes where x < limit, else value
//   any_at_least(x, limit): whether a lane is >= limit
//   reduce_add, reduce_max: a fixed tree
//   turn_neighbours(x, cosines, sines): (a c - b s, a s + b c) of 8 pairs (a, b) of neighbours
//   store_codes(std::int8_t*, I32x16): as bytes; returns their sum
//   Codes, load_codes(const std::byte*): 64 bytes
//     in_register(Codes): the same, which several operations read
//     shifted(Codes, left): by so many bits, or to the right if negative; what that moves into a
//     byte from the one beside it is not defined
//     masked(Codes, bits): these bits of each byte; or_masked(a, b, bits) = a | masked(b, bits)
//     looked_up(Codes, const std::uint8_t* table): table[byte] of each byte, all below 16
//     even_bf16, odd_bf16(Codes): of 16 pairs of bfloat16
//   DotSum<kBits>(zero, minus_sum): starts at zero * minus_sum; zero is 0 or a power of two.
//     add(Codes, const std::int8_t*) adds, in each lane, 4 codes times 4 activations;
//     sum(zero, minus_sum) gives the lanes. Codes of 8 bits, stored + 128, count as code +
//     kDotZero.
//   if it defines FIRP_DOT_BF16: dot_bf16(F32x16, Codes, const std::uint16_t*), store_bf16; and
//     FIRP_AMX where tiles take dot_bf16's place
//   if it defines FIRP_EXPAND_CODES: store_code_bytes(std::byte*, Codes): 64 bytes, aligned
//   kTileRows: rows of a tile at most; kWideBlocks, kWideFloatBlocks: its blocks, as many as the
//   registers allow; kRegisterSums: results, rows times blocks, that stay in registers between
//   groups, where more wait in memory; kFewRows: with up to so many, a tile of codes has one block,
//   also where it has fewer than kFewProducts inputs of all rows together; kFewFloatBlocks: blocks
//   of a tile of floats that has all rows; kAttentionHeads, kAttentionVectors: query heads times
//   vectors of positions (or of a head's elements) at a time

// Attention uses what stands before it, so the order matters.
// clang-format off
#include "kernels/body_products.h"
#include "kernels/body_rows.h"
#include "kernels/body_attention.h"
// clang-format on

constexpr Kernels table(const char* isa) {
  return {isa,        matmul,      form,          prepare,       inverse_rms, scale,
          add_scaled, rope,        silu_multiply, gelu_multiply, soft_cap,    store_kv,
          attend,     select_best, dot,           sum_exp};
}
