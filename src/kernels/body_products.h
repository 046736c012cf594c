// Products of packed weights with a few rows. See kernels_body.h.
//
// An output's operations and their order depend on the matrix's inputs alone: never on the number
// of rows, the tile, or the range of blocks.

// With few rows a tile waits for memory. It fetches its blocks some KB ahead: nearer, and it waits
// for them; further, and the first-level cache has lost them again (docs/performance.md). With more
// rows it is several tiles after another that read a block, and fetch the next one meanwhile.
constexpr std::size_t kCodesAhead = 8 << 10;
constexpr std::size_t kWideCodesAhead = kFewRows > 0 ? 2 << 10 : 4 << 10;  // of each block
constexpr std::size_t kFloatsAhead = 2 << 10;
constexpr std::size_t kBf16Ahead = 4 << 10;
constexpr std::size_t kWholeBlock = SIZE_MAX;

/// What a tile reads and writes.
struct TileTask {
  const std::byte* weights;  ///< the first block
  std::size_t block_bytes;   ///< from a block to the next
  int cells;                 ///< of a block
  /// What the tile prefetches while it runs, of each of its blocks: bytes fetch_begin .. fetch_end
  /// - 1, where behind the end of the block stands that of the next tile, which begins at `next`.
  const std::byte* next;
  std::size_t fetch_begin, fetch_end;
  bool fetch_far = false;  ///< to the second-level cache: the first has no room for a whole block
  const Activations& x;
  int first_row;
  float* y;
  std::size_t y_stride;
  bool add;
  int first_output, outputs;
  /// Where a block is taken in parts (kExpanded): the part, expanded; its place in a row of
  /// activations; and the tile's sums so far, if other parts stand before or after it.
  const std::byte* expanded = nullptr;
  int first_group = 0;
  float* sums = nullptr;
  bool first_part = true, last_part = true;
};

using Tile = void (*)(const TileTask&);

/// The tile of all rows and `blocks` blocks from `block` on, which fetches each block `ahead` bytes
/// before it reads them, or a whole block before.
inline TileTask tile_task(const ProductTask& product, const Activations& x, int block, int blocks,
                          std::size_t ahead) {
  const PackedMatrix& w = product.weights;
  const std::size_t bytes = w.block_bytes();
  const bool last = block + blocks == product.end_block;
  const std::byte* const next = last ? product.next : w.block(block + blocks);
  const std::size_t begin = ahead < bytes ? ahead : bytes;
  return {.weights = w.block(block),
          .block_bytes = bytes,
          .cells = w.cells(),
          .next = next,
          .fetch_begin = begin,
          .fetch_end = next == nullptr ? bytes : begin + bytes,
          .x = x,
          .first_row = 0,
          .y = product.y,
          .y_stride = product.y_stride,
          .add = product.add,
          .first_output = block * kBlockOutputs,
          .outputs = w.outputs()};
}

/// Fetches what a tile of kBlocks blocks is to fetch, a few lines with each of its steps: all at
/// once would make the tile wait, and the memory then idle.
template <int kBlocks>
class Prefetch {
 public:
  Prefetch(const TileTask& task, int steps)
      : weights_(task.weights),
        next_(task.next),
        block_bytes_(task.block_bytes),
        step_bytes_((task.fetch_end - task.fetch_begin) / steps),
        done_(task.fetch_begin),
        due_(task.fetch_begin),
        far_(task.fetch_far) {}
  void step() {
    for (due_ += step_bytes_; done_ < due_; done_ += 64) {
      const std::byte* const line =
          done_ < block_bytes_ ? weights_ + done_ : next_ + (done_ - block_bytes_);
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        if (far_) {
          __builtin_prefetch(line + b * block_bytes_, 0, 2);
        } else {
          __builtin_prefetch(line + b * block_bytes_, 0, 3);
        }
      }
    }
  }

 private:
  const std::byte* weights_;
  const std::byte* next_;
  std::size_t block_bytes_;
  std::size_t step_bytes_;
  std::size_t done_, due_;
  bool far_;
};

/// Stores 16 outputs from `first` on, of which there are `outputs`; or adds them to what is there.
inline void store_outputs(float* y, int first, int outputs, bool add_to, F32x16 values) {
  if (first + kBlockOutputs <= outputs) {
    store(y + first, add_to ? add(load(y + first), values) : values);
  } else {
    float tail[kBlockOutputs];
    store(tail, values);
    for (int i = 0; first + i < outputs; ++i) {
      y[first + i] = add_to ? y[first + i] + tail[i] : tail[i];
    }
  }
}

template <int kRows, int kBlocks>
inline void store_tile(const TileTask& task, const F32x16 (&result)[kRows][kBlocks]) {
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) {
      store_outputs(task.y + (task.first_row + r) * task.y_stride,
                    task.first_output + b * kBlockOutputs, task.outputs, task.add, result[r][b]);
    }
  }
}

/// Bits that lie as planes of kBits: vector v's, moved to bit `to` of each byte.
template <int kBits>
inline Codes load_plane(const std::byte* planes, int v, int to) {
  constexpr int kVectors = 8 / kBits;  // of a plane
  const Codes plane = in_register(load_codes(planes + 64 * (v / kVectors)));
  return shifted(plane, to - kBits * (v % kVectors));
}

/// Code vector v of half a quarter: inputs 4 v .. 4 v + 3 of 16 outputs. `low`, `high`: where the
/// half's low codes and high bits begin. With a codebook: its entries, in their place.
template <ggml_type kType>
inline Codes load_code(const std::byte* low, const std::byte* high, int v) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  constexpr int kBits = kFormat.bits;
  if constexpr (kBits == 8) return load_codes(low + 64 * v);
  Codes codes;
  if constexpr (kBits >= 4) {
    codes = masked(shifted(load_codes(low + 64 * (v % 4)), v < 4 ? 0 : -4), 15);
  } else {
    codes = masked(load_plane<2>(low, v, 0), 3);
  }
  if constexpr (kBits == 6) codes = or_masked(codes, load_plane<2>(high, v, 4), 3 << 4);
  if constexpr (kBits % 2 == 1) {
    codes = or_masked(codes, load_plane<1>(high, v, kBits - 1), 1 << (kBits - 1));
  }
  if constexpr (kFormat.has_codebook()) {
    alignas(16) static constexpr Codebook kCodebook = kFormat.codebook;
    codes = looked_up(codes, kCodebook.data());
  }
  return codes;
}

/// A cell's header as F32: its scales, then its mins. Nothing where the type has none.
template <ggml_type kType>
inline void load_header(const std::byte* cell, float* to) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  if constexpr (kFormat.sub_scales()) {
    const Half* const header = reinterpret_cast<const Half*>(cell);
    store(to, load_half(header));
    if constexpr (kFormat.has_min) store(to + kBlockOutputs, load_half(header + kBlockOutputs));
  }
}

/// The scales of a group, or its mins, which stand at `at` and are multiplied by `header`'s.
template <ggml_type kType>
inline F32x16 load_scales(const float* header, const std::byte* at) {
  constexpr ScaleKind kScale = packed_format<kType>().scale;
  if constexpr (kScale == ScaleKind::kF16TimesByte) {
    return mul(load(header), load_bytes(at));
  } else if constexpr (kScale == ScaleKind::kPowerOfTwo) {
    return load_powers(at);
  } else {
    return load_half(reinterpret_cast<const Half*>(at));
  }
}

/// Where the parts of half a quarter begin, 32 inputs; the mins of a group stand mins_after() bytes
/// after its scales.
struct HalfQuarter {
  const std::byte *low, *high, *scales;
};
template <ggml_type kType>
inline HalfQuarter half_quarter(const std::byte* quarter, int half) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  const std::byte* const high = quarter + kFormat.low_bytes();
  return {quarter + half * (kFormat.low_bytes() / 2), high + half * (kFormat.high_bytes() / 2),
          high + kFormat.high_bytes() + half * (32 / kFormat.group * kFormat.group_scale_bytes())};
}
constexpr int mins_after(const PackedFormat& format) {
  return 64 / format.group * format.group_scale_bytes();
}

/// What the codes of a block are put together to, for 32 inputs: eight vectors of 64 bytes, then as
/// F32 the scales and the mins of its groups.
template <ggml_type kType>
constexpr int expanded_bytes() {
  constexpr PackedFormat kFormat = packed_format<kType>();
  return 8 * 64 + 32 / kFormat.group * (kFormat.has_min ? 2 : 1) * 64;
}

/// kRows rows times kBlocks blocks of 16 outputs, over all inputs: for each group an exact integer
/// dot product, one fma with its scale, and one with its min.
template <ggml_type kType, int kRows, int kBlocks, bool kExpanded = false>
void codes_tile(const TileTask& task) {
  static_assert(!kExpanded || kBlocks == 1);
  constexpr PackedFormat kFormat = packed_format<kType>();
  constexpr int kBits = kFormat.product_bits();
  constexpr int kZero = kBits == 8 ? kDotZero : kFormat.zero;
  constexpr int kGroups = 32 / kFormat.group;  // in a half
  constexpr int kVectors = 8 / kGroups;        // of codes in a group
  constexpr int kQuarters = kFormat.cell_inputs() / 64;
  constexpr int kMins = mins_after(kFormat);
  using Sum = DotSum<kBits>;
  const std::size_t block_bytes = task.block_bytes;

  const ActivationGroup* in[kRows];
  F32x16 result[kRows][kBlocks];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    in[r] = task.x.groups(task.first_row + r) + task.first_group;
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) result[r][b] = splat(0.0f);
    if (kExpanded && !task.first_part) {
      result[r][0] = load(task.sums + r * kBlockOutputs);
    }
  }

  Prefetch<kBlocks> prefetch(task, 2 * kQuarters * task.cells);
  [[maybe_unused]] const std::byte* expanded = task.expanded;
  const std::byte* cell = task.weights;
  for (int c = 0; c < task.cells; ++c, cell += kFormat.cell_bytes()) {
    [[maybe_unused]] alignas(64) float headers[kBlocks][2 * kBlockOutputs];
    if constexpr (!kExpanded) {
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) load_header<kType>(cell + b * block_bytes, headers[b]);
    }
    const std::byte* quarter = cell + kFormat.header_bytes();
    for (int q = 0; q < kQuarters; ++q, quarter += kFormat.quarter_bytes()) {
#pragma GCC unroll 1
      for (int half = 0; half < 2; ++half) {
        prefetch.step();
        const auto [low, high, scales] = half_quarter<kType>(quarter, half);
        // In a group of 16, the first of two: its term, not yet scaled as the activations are.
        [[maybe_unused]] F32x16 first_term[kRows][kBlocks];
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) {
          const int part = kGroups == 1 ? 2 : g;  // the sums of all 32 inputs, or of 16
          Sum dot[kRows][kBlocks];
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            const Sum start(kZero, in[r]->minus_sums[part]);
#pragma GCC unroll 16
            for (int b = 0; b < kBlocks; ++b) dot[r][b] = start;
          }
#pragma GCC unroll 8
          for (int i = 0; i < kVectors; ++i) {
            // Both nibbles of a byte one after the other: it is loaded once.
            const int v = kGroups == 1 ? i / 2 + 4 * (i % 2) : g * kVectors + i;
            Codes codes[kBlocks];
#pragma GCC unroll 16
            for (int b = 0; b < kBlocks; ++b) {
              codes[b] = kExpanded
                             ? load_codes(expanded + 64 * v)
                             : load_code<kType>(low + b * block_bytes, high + b * block_bytes, v);
            }
            // The blocks of a row one after the other: its activations are loaded once.
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
              for (int b = 0; b < kBlocks; ++b) dot[r][b].add(codes[b], in[r]->codes + 4 * v);
            }
          }
#pragma GCC unroll 16
          for (int b = 0; b < kBlocks; ++b) {
            const std::byte* const at = scales + b * block_bytes + g * kFormat.group_scale_bytes();
            [[maybe_unused]] const float* const floats =
                reinterpret_cast<const float*>(expanded + 8 * 64) + g * kBlockOutputs;
            const F32x16 scale = kExpanded ? load(floats) : load_scales<kType>(headers[b], at);
#pragma GCC unroll 16
            for (int r = 0; r < kRows; ++r) {
              const F32x16 sum = to_float(dot[r][b].sum(kZero, in[r]->minus_sums[part]));
              const F32x16 input_scale = splat(in[r]->scale);
              if constexpr (kGroups == 1) {
                result[r][b] = fma(sum, mul(scale, input_scale), result[r][b]);
              } else if (g == 0) {
                first_term[r][b] = mul(sum, scale);
              } else {
                result[r][b] = fma(fma(sum, scale, first_term[r][b]), input_scale, result[r][b]);
              }
            }
            if constexpr (kFormat.has_min) {
              const F32x16 min = kExpanded
                                     ? load(floats + kGroups * kBlockOutputs)
                                     : load_scales<kType>(headers[b] + kBlockOutputs, at + kMins);
#pragma GCC unroll 16
              for (int r = 0; r < kRows; ++r) {
                result[r][b] = fma(min, splat(in[r]->scaled_sums[part]), result[r][b]);
              }
            }
          }
        }
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) ++in[r];
        if constexpr (kExpanded) expanded += expanded_bytes<kType>();
        // The registers are for the dots: sums that they cannot hold beside wait in memory.
        if constexpr (kRows * kBlocks > kRegisterSums) asm volatile("" : "+m"(result));
      }
    }
  }
  if (kExpanded && !task.last_part) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      store(task.sums + r * kBlockOutputs, result[r][0]);
    }
    return;
  }
  store_tile(task, result);
}

constexpr int kManyRows = 9;

#ifdef FIRP_EXPAND_CODES
// Small tiles put the bits of a code together for few rows. With many rows that is done once for
// all of them, for a part of a block whose codes, a byte each, stay in the first-level cache.
constexpr int kExpandedBytes = 16 << 10;
constexpr int kExpandedRows = 64;  // whose sums are kept beside

template <ggml_type kType>
void expand(const std::byte* cell, int cells, std::byte* to) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  constexpr int kGroups = 32 / kFormat.group;
  constexpr int kMins = mins_after(kFormat);
  for (int c = 0; c < cells; ++c, cell += kFormat.cell_bytes()) {
    alignas(64) float header[2 * kBlockOutputs];
    load_header<kType>(cell, header);
    const std::byte* quarter = cell + kFormat.header_bytes();
    for (int q = 0; q < kFormat.cell_inputs() / 64; ++q, quarter += kFormat.quarter_bytes()) {
      for (int half = 0; half < 2; ++half, to += expanded_bytes<kType>()) {
        const auto [low, high, scales] = half_quarter<kType>(quarter, half);
#pragma GCC unroll 8
        for (int v = 0; v < 8; ++v) {
          store_code_bytes(to + 64 * v, load_code<kType>(low, high, v));
        }
        float* const floats = reinterpret_cast<float*>(to + 8 * 64);
        for (int g = 0; g < kGroups; ++g) {
          const std::byte* const at = scales + g * kFormat.group_scale_bytes();
          store(floats + g * kBlockOutputs, load_scales<kType>(header, at));
          if constexpr (kFormat.has_min) {
            store(floats + (kGroups + g) * kBlockOutputs,
                  load_scales<kType>(header + kBlockOutputs, at + kMins));
          }
        }
      }
    }
  }
}

/// A block times all rows of x.
template <ggml_type kType>
void expanded_block(const TileTask& whole) {
  constexpr PackedFormat kFormat = packed_format<kType>();
  constexpr int kCellBytes = kFormat.cell_inputs() / 32 * expanded_bytes<kType>();
  constexpr int kMostCells = kExpandedBytes / kCellBytes;
  static_assert(kTileRows == 4);
  constexpr Tile kRowsTiles[] = {codes_tile<kType, 1, 1, true>, codes_tile<kType, 2, 1, true>,
                                 codes_tile<kType, 3, 1, true>, codes_tile<kType, 4, 1, true>};
  alignas(64) std::byte part[kMostCells * kCellBytes];
  alignas(64) float sums[kExpandedRows * kBlockOutputs];
  TileTask task = whole;
  task.expanded = part;
  const int rows = task.x.rows();
  const int parts = (whole.cells + kMostCells - 1) / kMostCells;
  const std::size_t fetched =
      (whole.fetch_end - whole.fetch_begin) / (parts * ((rows + kTileRows - 1) / kTileRows));
  task.fetch_end = task.fetch_begin + fetched;
  for (int begin = 0; begin < rows; begin += kExpandedRows) {
    const int wanted = rows - begin < kExpandedRows ? rows - begin : kExpandedRows;
    const int chunks = (wanted + kTileRows - 1) / kTileRows;
    for (int first = 0; first < whole.cells; first += kMostCells) {
      const int left = whole.cells - first;
      task.cells = left < kMostCells ? left : kMostCells;
      task.weights = whole.weights + first * kFormat.cell_bytes();
      task.first_group = first * kFormat.cell_inputs() / 32;
      task.first_part = first == 0;
      task.last_part = task.cells == left;
      expand<kType>(task.weights, task.cells, part);
      for (int chunk = 0; chunk < chunks; ++chunk) {  // the rows as evenly as can be
        const int first_row = wanted * chunk / chunks;
        task.first_row = begin + first_row;
        task.sums = sums + first_row * kBlockOutputs;
        kRowsTiles[wanted * (chunk + 1) / chunks - first_row - 1](task);
        task.fetch_begin += fetched;
        task.fetch_end += fetched;
      }
    }
  }
}
#endif

/// The same for weights that are floats: one chain of fma an output, in ascending order of inputs.
template <WeightKind kKind, int kRows, int kBlocks>
void float_tile(const TileTask& task) {
  constexpr int kPairBytes = kBlockOutputs * 2 * (kKind == WeightKind::kF32 ? 4 : 2);
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
  Prefetch<kBlocks> prefetch(task, inputs / 4);
  for (int i = 0; i < inputs;) {
    prefetch.step();
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair, i += 2, weights += kPairBytes) {
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
#pragma GCC unroll 16
        for (int b = 0; b < kBlocks; ++b) {
          const std::byte* const at = weights + b * task.block_bytes;
          F32x16 w;
          if constexpr (kKind == WeightKind::kF32) {
            w = load(reinterpret_cast<const float*>(at) + k * kBlockOutputs);
          } else if constexpr (kKind == WeightKind::kF16) {
            w = load_half(reinterpret_cast<const Half*>(at) + k * kBlockOutputs);
          } else {
            w = k == 0 ? even_bf16(load_codes(at)) : odd_bf16(load_codes(at));
          }
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
            result[r][b] = fma(w, splat(values[r][i + k]), result[r][b]);
          }
        }
      }
    }
  }
  store_tile(task, result);
}

#ifdef FIRP_AMX
#include "kernels/body_amx.h"
#elif defined(FIRP_DOT_BF16)
/// BF16 weights times BF16 activations, two inputs an instruction.
template <int kRows, int kBlocks>
void bf16_tile(const TileTask& task) {
  const std::uint16_t* values[kRows];
  F32x16 result[kRows][kBlocks];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    values[r] = task.x.bf16(task.first_row + r);
#pragma GCC unroll 16
    for (int b = 0; b < kBlocks; ++b) result[r][b] = splat(0.0f);
  }
  const std::byte* weights = task.weights;
  const int inputs = 64 * task.cells;
  Prefetch<kBlocks> prefetch(task, inputs / 8);
  for (int i = 0; i < inputs;) {
    prefetch.step();
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair, i += 2, weights += 64) {
#pragma GCC unroll 16
      for (int b = 0; b < kBlocks; ++b) {
        const Codes w = load_codes(weights + b * task.block_bytes);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) result[r][b] = dot_bf16(result[r][b], w, values[r] + i);
      }
    }
  }
  store_tile(task, result);
}
#endif

/// Tiles of 1 .. `rows` rows each.
struct Tiles {
  static constexpr int kMostRows = 8;
  int rows;
  Tile single[kMostRows];  ///< of one block
  Tile few[kMostRows];     ///< of few_blocks, for up to few_rows rows or fewer inputs of all rows
  int few_rows, few_products;  ///< than few_products, if one tile has them
  int few_blocks;
  std::size_t few_ahead;  ///< bytes by which each block is then fetched ahead
  Tile wide[kMostRows];   ///< of wide_blocks, for more rows
  int wide_blocks;
  std::size_t wide_ahead;  ///< where one tile has all rows
  Tile many = nullptr;     ///< a block times kManyRows or more; none where wide tiles do as well
};

template <ggml_type kType, int... kRows>
constexpr Tiles codes_tiles(std::integer_sequence<int, kRows...>) {
  Tiles tiles = {sizeof...(kRows),
                 {codes_tile<kType, kRows + 1, 1>...},
                 {codes_tile<kType, kRows + 1, 1>...},
                 kFewRows,
                 kFewProducts,
                 1,
                 kCodesAhead,
                 {codes_tile<kType, kRows + 1, kWideBlocks>...},
                 kWideBlocks,
                 kWideCodesAhead};
#ifdef FIRP_EXPAND_CODES
  tiles.many = expanded_block<kType>;
#endif
  return tiles;
}

template <WeightKind kKind, int... kRows>
constexpr Tiles float_tiles(std::integer_sequence<int, kRows...>) {
  return {sizeof...(kRows),
          {float_tile<kKind, kRows + 1, 1>...},
          {float_tile<kKind, kRows + 1, kFewFloatBlocks>...},
          sizeof...(kRows),
          0,
          kFewFloatBlocks,
          kFloatsAhead,
          {float_tile<kKind, kRows + 1, kWideFloatBlocks>...},
          kWideFloatBlocks,
          kWholeBlock};
}

#if defined(FIRP_DOT_BF16) && !defined(FIRP_AMX)
template <int... kRows>
constexpr Tiles bf16_tiles(std::integer_sequence<int, kRows...>) {
  return {sizeof...(kRows),
          {bf16_tile<kRows + 1, 1>...},
          {bf16_tile<kRows + 1, 2>...},
          sizeof...(kRows),
          0,
          2,
          kBf16Ahead,
          {bf16_tile<kRows + 1, 2>...},
          2,
          kWholeBlock};
}
#endif

template <ggml_type kType>
inline constexpr Tiles kTiles = [] {
  constexpr std::make_integer_sequence<int, kTileRows> kRows;
  constexpr WeightKind kKind = packed_format<kType>().kind;
  if constexpr (kKind == WeightKind::kCodes) {
    return codes_tiles<kType>(kRows);
#if defined(FIRP_AMX)
  } else if constexpr (kKind == WeightKind::kBF16) {
    return Tiles{};  // amx_matmul
#elif defined(FIRP_DOT_BF16)
  } else if constexpr (kKind == WeightKind::kBF16) {
    return bf16_tiles(std::make_integer_sequence<int, 8>());
#endif
  } else {
    return float_tiles<kKind>(kRows);
  }
}();

template <std::size_t... kTypes>
const Tiles& tiles_of(const PackedFormat& format, std::index_sequence<kTypes...>) {
  static constexpr const Tiles* kAll[] = {&kTiles<kTensorTypes[kTypes].type>...};
  return *kAll[format.index];
}

void matmul(const ProductTask& product, const Activations& x) {
  const PackedMatrix& w = product.weights;
#ifdef FIRP_AMX
  if (w.format().kind == WeightKind::kBF16) return amx_matmul(product, x);
#endif
  const Tiles& tiles = tiles_of(w.format(), std::make_index_sequence<kTensorTypeCount>());
  const int rows = x.rows();
  const int chunks = (rows + tiles.rows - 1) / tiles.rows;
  const bool many = tiles.many != nullptr && rows >= kManyRows;
  const bool few =
      rows <= tiles.few_rows || (chunks == 1 && rows * w.inputs() < tiles.few_products);
  const std::size_t ahead = few ? tiles.few_ahead : chunks == 1 ? tiles.wide_ahead : kWholeBlock;
  const int most_blocks = many ? 1 : few ? tiles.few_blocks : tiles.wide_blocks;
  for (int block = product.first_block; block < product.end_block;) {
    const int blocks = product.end_block - block >= most_blocks ? most_blocks : 1;
    TileTask task = tile_task(product, x, block, blocks, ahead);
    // Where two tiles read a block it is mostly memory that they wait for.
    task.fetch_far = chunks == 2;
    if (many) {
      tiles.many(task);
    } else {
      const Tile* const table = blocks == 1 ? tiles.single : few ? tiles.few : tiles.wide;
      const std::size_t fetched = (task.fetch_end - task.fetch_begin) / chunks;
      for (int chunk = 0; chunk < chunks; ++chunk) {  // the rows as evenly as can be
        const int end_row = rows * (chunk + 1) / chunks;
        task.fetch_end = task.fetch_begin + fetched;
        table[end_row - task.first_row - 1](task);
        task.first_row = end_row;
        task.fetch_begin = task.fetch_end;
      }
    }
    block += blocks;
  }
}

ActivationForm form(WeightKind kind) {
  if (kind == WeightKind::kCodes) return ActivationForm::kGroups;
#ifdef FIRP_DOT_BF16
  if (kind == WeightKind::kBF16) return ActivationForm::kBf16;
#endif
  return ActivationForm::kValues;
}

inline void quantize(const float* values, ActivationGroup& group) {
  const F32x16 a = load(values);
  const F32x16 b = load(values + 16);
  const float largest = reduce_max(max(max(a, sub(splat(0.0f), a)), max(b, sub(splat(0.0f), b))));
  group.scale = largest / 127.0f;
  const F32x16 inverse = splat(largest > 0.0f ? 127.0f / largest : 0.0f);
  for (int half = 0; half < 2; ++half) {
    // The bounds only matter where a value is not finite.
    const F32x16 code = max(min(mul(half == 0 ? a : b, inverse), splat(127.0f)), splat(-127.0f));
    group.minus_sums[half] = -store_codes(group.codes + 16 * half, to_int(code));
  }
  group.minus_sums[2] = group.minus_sums[0] + group.minus_sums[1];
  for (int part = 0; part < 3; ++part) {
    group.scaled_sums[part] = group.scale * static_cast<float>(-group.minus_sums[part]);
  }
}

void prepare(Activations& x, int row, int first, int end, ActivationForm wanted) {
  if (wanted == ActivationForm::kGroups) {
    for (int i = first; i < end; ++i) quantize(x.values(row) + 32 * i, x.groups(row)[i]);
  }
#ifdef FIRP_DOT_BF16
  if (wanted == ActivationForm::kBf16) {
    for (int i = 2 * first; i < 2 * end; ++i) {
      store_bf16(x.bf16(row) + 16 * i, load(x.values(row) + 16 * i));
    }
  }
#endif
}
