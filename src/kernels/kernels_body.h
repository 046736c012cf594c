// The arithmetic of every instruction set, written once over vectors of 16 lanes.
//
// Included by each kernels_<isa>.cpp inside its anonymous namespace, after it has defined:
//   F32x16, I32x16                       16 lanes
//   zero(), splat(float), load(const float*), store(float*, F32x16)
//   load_half(const Half*), load_bf16(const std::uint16_t*), store_half(Half*, F32x16)
//   add, sub, mul, div, min, max, fma(a, b, c) = a * b + c, sqrt is scalar
//   splat_int(int), to_float(I32x16), to_int(F32x16) (nearest even), power_of_two(I32x16)
//   zero_where_below(x, limit, value): 0 in the lanes where x < limit, else value
//   reduce_add, reduce_max: a fixed tree
//   Codes, load_codes(const std::byte*), low_nibbles(Codes), high_nibbles(Codes)
//   dot4_small(I32x16, Codes, const std::int8_t*): adds, in each lane, 4 codes of 0 .. 15 times the
//     4 activations at the pointer
//   dot4(...): the same with codes that are stored + 128; counts them as code + kDotZero
//   kDotZero, kManyRows, kManyBlocks: the tile for many rows, as large as the registers allow
//
// An output's operations and their order depend on the matrix's inputs alone: never on the number
// of rows, the tile, or the range of blocks.

// ---- products ----

/// 16 outputs from `first` on, of which there are `outputs`.
inline void store_outputs(float* y, int first, int outputs, F32x16 values) {
  if (first + kBlockOutputs <= outputs) {
    store(y + first, values);
  } else {
    float tail[kBlockOutputs];
    store(tail, values);
    for (int i = 0; first + i < outputs; ++i) y[first + i] = tail[i];
  }
}

/// How the cells of a packed format lie in memory. `kZeroCode`: the code that means 0.
template <CodeKind kCodes, int kGroup, bool kWide, bool kMin, int kZeroCode>
struct IntegerFormat {
  static constexpr bool kFour = kCodes == CodeKind::kFourBit;
  static constexpr bool kHasMin = kMin;
  static constexpr int kZero = kFour ? kZeroCode : kDotZero;
  static constexpr int kGroups = 32 / kGroup;           ///< in half a cell
  static constexpr int kHalfBytes = kFour ? 256 : 512;  ///< codes of 32 inputs
  static constexpr int kScaleBytes = kBlockOutputs * (kWide ? 4 : 2);
  static constexpr int kScales = 2 * kHalfBytes;
  static constexpr int kToMins = 2 * kGroups * kScaleBytes;
  static constexpr int kCellBytes = kScales + (kMin ? 2 : 1) * kToMins;

  static F32x16 scales(const std::byte* at) {
    if constexpr (kWide) {
      return load(reinterpret_cast<const float*>(at));
    } else {
      return load_half(reinterpret_cast<const Half*>(at));
    }
  }
};

/// What a tile reads and writes.
struct TileTask {
  const std::byte* weights;  ///< the first block
  std::size_t block_bytes;   ///< from a block to the next
  int cells;                 ///< of a block
  /// Bytes that the tile prefetches while it runs: its part of the weights that come next.
  const std::byte* next;
  std::size_t next_bytes;
  const Activations& x;
  int first_row;
  float* y;
  std::size_t y_stride;
  int first_output, outputs;
};

/// Fetches a tile's `next` bytes, a few lines with each of its steps: all at once would make the
/// tile wait, and the memory then idle.
class Prefetch {
 public:
  Prefetch(const TileTask& task, int steps)
      : at_(task.next), due_(task.next), step_bytes_(task.next_bytes / steps) {}
  void step() {
    for (due_ += step_bytes_; at_ < due_; at_ += 64) __builtin_prefetch(at_, 0, 3);
  }

 private:
  const std::byte* at_;
  const std::byte* due_;
  std::size_t step_bytes_;
};

/// kRows rows times kBlocks blocks of 16 outputs, over all inputs.
template <typename Format, int kRows, int kBlocks>
void integer_tile(const TileTask& task) {
  const std::size_t block_bytes = task.block_bytes;
  constexpr int kGroups = Format::kGroups;
  const ActivationGroup* in[kRows];
  F32x16 result[kRows][kBlocks];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    in[r] = task.x.groups(task.first_row + r);
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) result[r][b] = splat(0.0f);
  }

  const std::byte* codes = task.weights;
  const std::byte* scales = task.weights + Format::kScales;
  const int halves = 2 * task.cells;
  Prefetch prefetch(task, halves);
  for (int half = 0; half < halves; ++half) {
    prefetch.step();
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      // Sums of both halves of the 32, or of one.
      const int part = kGroups == 1 ? 2 : g;
      I32x16 dot[kRows][kBlocks];
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const I32x16 start =
            Format::kZero == 0 ? splat_int(0) : splat_int(-Format::kZero * in[r]->sums[part]);
#pragma GCC unroll 16
        for (int b = 0; b < kBlocks; ++b) dot[r][b] = start;
      }
      if constexpr (Format::kFour) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          Codes packed[kBlocks];
#pragma GCC unroll 16
          for (int b = 0; b < kBlocks; ++b)
            packed[b] = load_codes(codes + b * block_bytes + 64 * v);
          if (kGroups == 1 || g == 0) {
#pragma GCC unroll 16
            for (int b = 0; b < kBlocks; ++b) {
              const Codes low = low_nibbles(packed[b]);
#pragma GCC unroll 16
              for (int r = 0; r < kRows; ++r) {
                dot[r][b] = dot4_small(dot[r][b], low, in[r]->codes + 4 * v);
              }
            }
          }
          if (kGroups == 1 || g == 1) {
#pragma GCC unroll 16
            for (int b = 0; b < kBlocks; ++b) {
              const Codes high = high_nibbles(packed[b]);
#pragma GCC unroll 16
              for (int r = 0; r < kRows; ++r) {
                dot[r][b] = dot4_small(dot[r][b], high, in[r]->codes + 16 + 4 * v);
              }
            }
          }
        }
      } else {
        constexpr int kVectors = 8 / kGroups;
#pragma GCC unroll 8
        for (int v = g * kVectors; v < (g + 1) * kVectors; ++v) {
#pragma GCC unroll 16
          for (int b = 0; b < kBlocks; ++b) {
            const Codes packed = load_codes(codes + b * block_bytes + 64 * v);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
              dot[r][b] = dot4(dot[r][b], packed, in[r]->codes + 4 * v);
            }
          }
        }
      }
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        const std::byte* const at = scales + b * block_bytes + g * Format::kScaleBytes;
        const F32x16 scale = Format::scales(at);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          result[r][b] = fma(to_float(dot[r][b]), mul(scale, splat(in[r]->scale)), result[r][b]);
        }
        if constexpr (Format::kHasMin) {
          const F32x16 min = Format::scales(at + Format::kToMins);
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            result[r][b] = fma(min, splat(in[r]->scaled_sums[part]), result[r][b]);
          }
        }
      }
    }
    const bool second = half % 2 != 0;
    codes += second ? Format::kCellBytes - Format::kHalfBytes : Format::kHalfBytes;
    scales +=
        second ? Format::kCellBytes - kGroups * Format::kScaleBytes : kGroups * Format::kScaleBytes;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) ++in[r];
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) {
      store_outputs(task.y + (task.first_row + r) * task.y_stride,
                    task.first_output + b * kBlockOutputs, task.outputs, result[r][b]);
    }
  }
}

struct F32Weights {
  static constexpr int kBytes = 4;
  static F32x16 load16(const std::byte* at) { return load(reinterpret_cast<const float*>(at)); }
};
struct F16Weights {
  static constexpr int kBytes = 2;
  static F32x16 load16(const std::byte* at) { return load_half(reinterpret_cast<const Half*>(at)); }
};
struct Bf16Weights {
  static constexpr int kBytes = 2;
  static F32x16 load16(const std::byte* at) {
    return load_bf16(reinterpret_cast<const std::uint16_t*>(at));
  }
};

/// The same for weights that are floats: one chain of fma an output, in ascending order of inputs.
template <typename Format, int kRows, int kBlocks>
void float_tile(const TileTask& task) {
  const float* values[kRows];
  F32x16 result[kRows][kBlocks];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    values[r] = task.x.values(task.first_row + r);
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) result[r][b] = splat(0.0f);
  }
  const std::byte* weights = task.weights;
  const int inputs = 64 * task.cells;
  Prefetch prefetch(task, inputs / 4);
  for (int i = 0; i < inputs;) {
    prefetch.step();
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k, ++i, weights += kBlockOutputs * Format::kBytes) {
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        const F32x16 w = Format::load16(weights + b * task.block_bytes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) result[r][b] = fma(w, splat(values[r][i]), result[r][b]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) {
      store_outputs(task.y + (task.first_row + r) * task.y_stride,
                    task.first_output + b * kBlockOutputs, task.outputs, result[r][b]);
    }
  }
}

using Tile = void (*)(const TileTask&);

/// Tiles of 1 .. kManyRows rows, for one block and for several.
struct Tiles {
  Tile one_block[kManyRows];
  Tile many_blocks[kManyRows];
  int blocks;  ///< of many_blocks
};

template <typename Format, int... kIndex>
constexpr Tiles integer_tiles_of(std::integer_sequence<int, kIndex...>) {
  return {{integer_tile<Format, kIndex + 1, 1>...},
          {integer_tile<Format, kIndex + 1, kManyBlocks>...},
          kManyBlocks};
}
template <CodeKind kCodes, int kGroup, bool kWide, bool kMin, int kZero>
constexpr Tiles integer_tiles() {
  return integer_tiles_of<IntegerFormat<kCodes, kGroup, kWide, kMin, kZero>>(
      std::make_integer_sequence<int, kManyRows>());
}

template <typename Format, int... kIndex>
constexpr Tiles float_tiles(std::integer_sequence<int, kIndex...>) {
  return {{float_tile<Format, kIndex + 1, 1>...},
          {float_tile<Format, kIndex + 1, kFloatBlocks>...},
          kFloatBlocks};
}

inline const Tiles& tiles_of(const PackedFormat& f) {
  using enum CodeKind;
  static constexpr Tiles kF32Tiles =
      float_tiles<F32Weights>(std::make_integer_sequence<int, kManyRows>());
  static constexpr Tiles kF16Tiles =
      float_tiles<F16Weights>(std::make_integer_sequence<int, kManyRows>());
  static constexpr Tiles kBf16Tiles =
      float_tiles<Bf16Weights>(std::make_integer_sequence<int, kManyRows>());
  static constexpr Tiles kFour32 = integer_tiles<kFourBit, 32, false, false, 8>();       // Q4_0
  static constexpr Tiles kFour32Min = integer_tiles<kFourBit, 32, false, true, 0>();     // Q4_1
  static constexpr Tiles kFour32WideMin = integer_tiles<kFourBit, 32, true, true, 0>();  // Q4_K
  static constexpr Tiles kFour16Wide = integer_tiles<kFourBit, 16, true, false, 4>();    // Q3_K
  static constexpr Tiles kFour16WideMin = integer_tiles<kFourBit, 16, true, true, 0>();  // Q2_K
  static constexpr Tiles kEight32 = integer_tiles<kEightBit, 32, false, false, 0>();  // Q8_0, Q5_0
  static constexpr Tiles kEight32Min = integer_tiles<kEightBit, 32, false, true, 0>();     // Q5_1
  static constexpr Tiles kEight32WideMin = integer_tiles<kEightBit, 32, true, true, 0>();  // Q5_K
  static constexpr Tiles kEight16Wide = integer_tiles<kEightBit, 16, true, false, 0>();    // Q6_K
  switch (f.codes) {
    case kF32:
      return kF32Tiles;
    case kF16:
      return kF16Tiles;
    case kBF16:
      return kBf16Tiles;
    case kFourBit:
      if (f.group == 16) return f.has_min ? kFour16WideMin : kFour16Wide;
      return f.wide_scales ? kFour32WideMin : f.has_min ? kFour32Min : kFour32;
    default:
      if (f.group == 16) return kEight16Wide;
      return f.wide_scales ? kEight32WideMin : f.has_min ? kEight32Min : kEight32;
  }
}

void matmul(const PackedMatrix& w, int first_block, int end_block, const Activations& x, float* y,
            std::size_t y_stride) {
  const Tiles& tiles = tiles_of(w.format());
  const int cells = w.cells();
  const std::size_t block_bytes = cells * w.format().cell_bytes();
  const bool floats = w.format().group == 0;
  const int rows = x.rows();
  // Few integer rows: one block at a time keeps the stream of weights sequential, and the rows
  // alone fill the registers. Floats have one chain of fma an output and need several outputs to
  // hide its latency.
  constexpr int kNarrowRows = 4;
  const bool narrow = !floats && rows <= kNarrowRows;
  for (int block = first_block; block < end_block;) {
    const bool many = !narrow && end_block - block >= tiles.blocks;
    const int blocks = many ? tiles.blocks : 1;
    const Tile* const table = many ? tiles.many_blocks : tiles.one_block;
    const int chunks = (rows + kManyRows - 1) / kManyRows;
    const std::size_t group_bytes = blocks * block_bytes;
    TileTask task = {.weights = w.block(block),
                     .block_bytes = block_bytes,
                     .cells = cells,
                     .next = w.block(block) + group_bytes,
                     .next_bytes = group_bytes / chunks,
                     .x = x,
                     .first_row = 0,
                     .y = y,
                     .y_stride = y_stride,
                     .first_output = block * kBlockOutputs,
                     .outputs = w.outputs()};
    for (int chunk = 0; chunk < chunks; ++chunk) {  // the rows as evenly as can be
      const int end_row = rows * (chunk + 1) / chunks;
      table[end_row - task.first_row - 1](task);
      task.first_row = end_row;
      task.next += task.next_bytes;
    }
    block += blocks;
  }
}

void quantize(Activations& x, int row) {
  const float* values = x.values(row);
  ActivationGroup* const groups = x.groups(row);
  for (int i = 0; i < x.stride() / 32; ++i, values += 32) {
    ActivationGroup& group = groups[i];
    const F32x16 a = load(values);
    const F32x16 b = load(values + 16);
    const float largest = reduce_max(max(max(a, sub(splat(0.0f), a)), max(b, sub(splat(0.0f), b))));
    group.scale = largest / 127.0f;
    const F32x16 inverse = splat(largest > 0.0f ? 127.0f / largest : 0.0f);
    for (int half = 0; half < 2; ++half) {
      // The bounds only matter where a value is not finite.
      const F32x16 code = max(min(mul(half == 0 ? a : b, inverse), splat(127.0f)), splat(-127.0f));
      group.sums[half] = store_codes(group.codes + 16 * half, to_int(code));
    }
    group.sums[2] = group.sums[0] + group.sums[1];
    for (int part = 0; part < 3; ++part) {
      group.scaled_sums[part] = group.scale * static_cast<float>(group.sums[part]);
    }
  }
}

// ---- norms, activations, positions ----

/// 16 values from p, of which `n` are there; the rest is zero.
inline F32x16 load_tail(const float* p, int n) {
  float padded[16] = {};
  for (int i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}

inline void store_tail(float* p, F32x16 x, int n) {
  float padded[16];
  store(padded, x);
  for (int i = 0; i < n; ++i) p[i] = padded[i];
}

void rms_norm(const float* x, const float* weight, float epsilon, int n, float* out) {
  F32x16 squares = splat(0.0f);
  int i = 0;
  for (; i + 16 <= n; i += 16) squares = fma(load(x + i), load(x + i), squares);
  if (i < n) {
    const F32x16 tail = load_tail(x + i, n - i);
    squares = fma(tail, tail, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(n);
  const F32x16 scale = splat(1.0f / __builtin_sqrtf(mean + epsilon));
  for (i = 0; i + 16 <= n; i += 16) store(out + i, mul(mul(load(x + i), scale), load(weight + i)));
  if (i < n) {
    store_tail(out + i, mul(mul(load_tail(x + i, n - i), scale), load_tail(weight + i, n - i)),
               n - i);
  }
}

void rope(float* head, const float* cosines, const float* sines, int pairs, bool interleaved) {
  const int step = interleaved ? 2 : 1;
  const int other = interleaved ? 1 : pairs;
  for (int pair = 0; pair < pairs; ++pair) {
    float& a = head[step * pair];
    float& b = head[step * pair + other];
    const float turned = a * cosines[pair] - b * sines[pair];
    b = a * sines[pair] + b * cosines[pair];
    a = turned;
  }
}

/// e^x to about 2 units in the last place; 0 for x < -87 (and for -infinity).
inline F32x16 exp(F32x16 x) {
  const F32x16 bounded = min(max(x, splat(-87.0f)), splat(88.0f));
  const I32x16 power = to_int(mul(bounded, splat(1.44269504f)));
  const F32x16 n = to_float(power);
  // ln 2 in two parts, so that the remainder is exact to the last bits.
  F32x16 r = fma(n, splat(-0.693359375f), bounded);
  r = fma(n, splat(2.12194440e-4f), r);
  F32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, mul(r, r), add(r, splat(1.0f)));
  return zero_where_below(x, -87.0f, mul(p, power_of_two(power)));
}

void silu_multiply(const float* gate, const float* up, int n, float* out) {
  const auto one = [](F32x16 g, F32x16 u) {
    return mul(div(g, add(splat(1.0f), exp(sub(splat(0.0f), g)))), u);
  };
  int i = 0;
  for (; i + 16 <= n; i += 16) store(out + i, one(load(gate + i), load(up + i)));
  if (i < n) {
    store_tail(out + i, one(load_tail(gate + i, n - i), load_tail(up + i, n - i)), n - i);
  }
}

void store_kv(const float* key, const float* value, int head_size, Half* page_part, int lane) {
  Half* const values = page_part + kPagePositions * head_size + lane * head_size;
  for (int i = 0; i < head_size; i += 16) {
    const int n = head_size - i < 16 ? head_size - i : 16;
    Half halves[16];
    store_half(halves, load_tail(key + i, n));
    for (int k = 0; k < n; ++k) page_part[(i + k) * kPagePositions + lane] = halves[k];
    store_half(halves, load_tail(value + i, n));
    for (int k = 0; k < n; ++k) values[i + k] = halves[k];
  }
}

// ---- attention ----

constexpr int kMostHeadSize = 1024;

/// Scores of kHeads query heads with the 16 positions whose transposed keys begin at `keys`: one
/// chain of fma over the head a position. scores[h] gets 16 floats.
template <int kHeads>
void score_lanes(const float* query, int head_size, const Half* keys, float* const* scores) {
  F32x16 score[kHeads];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) score[h] = splat(0.0f);
  for (int i = 0; i < head_size; ++i) {
    const F32x16 key = load_half(keys + i * kPagePositions);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      score[h] = fma(splat(query[h * head_size + i]), key, score[h]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) store(scores[h], score[h]);
}

/// result[h][i .. i + 15] += sum over positions of weights[h][position] * its value, position by
/// position; those without a value are not seen.
template <int kHeads>
void add_values(const float (*weights)[kPagePositions], const Half* const* values, int positions,
                int i, int n, float (*result)[kMostHeadSize]) {
  F32x16 sum[kHeads];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) sum[h] = load(result[h] + i);
  for (int position = 0; position < positions; ++position) {
    if (values[position] == nullptr) continue;
    F32x16 value;
    if (n == 16) {
      value = load_half(values[position] + i);
    } else {
      Half tail[16] = {};
      for (int k = 0; k < n; ++k) tail[k] = values[position][i + k];
      value = load_half(tail);
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      sum[h] = fma(splat(weights[h][position]), value, sum[h]);
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) store(result[h] + i, sum[h]);
}

template <int kHeads>
void attend_heads(const AttentionTask& task, const float* query, float* out) {
  const int head_size = task.head_size;
  const std::int32_t* const slots = task.slots.data();
  const int end = task.committed + static_cast<int>(task.slots.size());
  const Half* const* const pages = task.pages.data();
  const Half* const* const scratch = task.scratch.data();
  const int keys_halves = kPagePositions * head_size;

  float result[kHeads][kMostHeadSize];
  float largest[kHeads], sum[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < head_size + 15; ++i) result[h][i] = 0.0f;
    largest[h] = -__builtin_inff();
    sum[h] = 0.0f;
  }

  for (int begin = 0; begin < end; begin += kPagePositions) {
    const int positions = end - begin < kPagePositions ? end - begin : kPagePositions;
    int in_page = task.committed - begin;
    in_page = in_page < 0 ? 0 : in_page > positions ? positions : in_page;

    float scores[kHeads][kPagePositions];
    const Half* values[kPagePositions];
    float* lanes[kHeads];
    if (in_page > 0) {
      const Half* const keys = pages[begin / kPagePositions] + task.offset;
      for (int first = 0; first < in_page; first += 16) {
        for (int h = 0; h < kHeads; ++h) lanes[h] = scores[h] + first;
        score_lanes<kHeads>(query, head_size, keys + first, lanes);
      }
      for (int i = 0; i < in_page; ++i) values[i] = keys + keys_halves + i * head_size;
    }
    // Positions in the scratch: their scores come 16 slots at a time, too.
    float slot_scores[kHeads][16];
    for (int h = 0; h < kHeads; ++h) lanes[h] = slot_scores[h];
    int scored = -1;
    for (int i = in_page; i < positions; ++i) {
      const std::int32_t slot = slots[begin + i - task.committed];
      if (slot == kNoSlot) {
        for (int h = 0; h < kHeads; ++h) scores[h][i] = -__builtin_inff();
        values[i] = nullptr;
        continue;
      }
      const Half* const keys = scratch[slot / kPagePositions] + task.offset;
      if (slot / 16 != scored) {
        scored = slot / 16;
        score_lanes<kHeads>(query, head_size, keys + slot % kPagePositions / 16 * 16, lanes);
      }
      for (int h = 0; h < kHeads; ++h) scores[h][i] = slot_scores[h][slot % 16];
      values[i] = keys + keys_halves + slot % kPagePositions * head_size;
    }

    for (int h = 0; h < kHeads; ++h) {
      for (int i = positions; i < kPagePositions; ++i) scores[h][i] = -__builtin_inff();
      F32x16 s[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) s[v] = mul(load(scores[h] + 16 * v), splat(task.scale));
      const float block_largest = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
      const float new_largest = largest[h] > block_largest ? largest[h] : block_largest;
      // Nothing seen so far (a block of missing pseudo rows): no scale to bring it to yet.
      const float shift = new_largest == -__builtin_inff() ? 0.0f : new_largest;
      float correction[16];
      store(correction, exp(splat(largest[h] - shift)));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        s[v] = exp(sub(s[v], splat(shift)));
        store(scores[h] + 16 * v, s[v]);
      }
      sum[h] = sum[h] * correction[0] + reduce_add(add(add(s[0], s[1]), add(s[2], s[3])));
      largest[h] = new_largest;
      for (int i = 0; i < head_size; i += 16) {
        store(result[h] + i, mul(load(result[h] + i), splat(correction[0])));
      }
    }
    for (int i = 0; i < head_size; i += 16) {
      add_values<kHeads>(scores, values, positions, i, head_size - i < 16 ? head_size - i : 16,
                         result);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int i = 0; i < head_size; ++i) out[h * head_size + i] = result[h][i] / sum[h];
  }
}

void attend(const AttentionTask& task) {
  for (int head = 0; head < task.group;) {
    const float* const query = task.query + head * task.head_size;
    float* const out = task.out + head * task.head_size;
    switch (task.group - head) {
      case 1:
        attend_heads<1>(task, query, out);
        return;
      case 2:
        attend_heads<2>(task, query, out);
        return;
      case 3:
        attend_heads<3>(task, query, out);
        return;
      default:
        attend_heads<4>(task, query, out);
        head += 4;
    }
  }
}
