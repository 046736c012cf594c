// Products with BF16 weights by AMX: tile registers of 16 rows x 64 bytes, and one instruction that
// multiplies two of them. Included by body_products.h, inside the anonymous namespace of
// kernels_avx512_amx.cpp.
//
// BF16 pairs lie in memory as the instruction wants weights: 4 bytes of 16 outputs side by side;
// the activations of up to 16 rows are the other tile, the sums a third. It adds 32 inputs in an
// order of its own, the same for every row and number of rows: so one row takes it, too. The
// compiler knows no tile registers: it cannot move or spill them, and nothing else here has any.

constexpr int kAmxRows = 16;
constexpr int kAmxInputs = 32;

template <int kTile>
inline void tile_load(const void* from, std::size_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(kTile)
               : "memory");
}
template <int kTile>
inline void tile_store(void* to, std::size_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(kTile)
               : "memory");
}
template <int kTile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kSums, int kInputs, int kWeights>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kInputs), "i"(kWeights));
}

/// Tiles of 64 bytes a row, for as long as it lives: 0 to 3 for sums and 4 and 5 for inputs have
/// `rows` rows, 6 and 7 for weights have 16. Other code of the thread has shapes of its own, which
/// it may set but once (ggml does): they come back.
class TileShapes {
 public:
  explicit TileShapes(int rows) {
    asm volatile("sttilecfg %0" : "=m"(before_));
    AmxShapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.rows[tile] = static_cast<std::uint8_t>(tile < 6 ? rows : 16);
      shapes.row_bytes[tile] = 64;
    }
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~TileShapes() { asm volatile("ldtilecfg %0" ::"m"(before_)); }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;

 private:
  AmxShapes before_;
};

/// Some rows of the input, at most 16 side by side.
struct RowChunk {
  int first;      ///< row
  int first_new;  ///< those before it were stored already
};

/// kBlocks blocks of weights times kChunks x `rows` rows, over all inputs.
template <int kBlocks, int kChunks>
void amx_tile(const TileTask& task, int rows, const RowChunk* chunks) noexcept {
  tile_zero<0>();
  if constexpr (kBlocks > 1) tile_zero<1>();
  if constexpr (kChunks > 1) tile_zero<2>();
  if constexpr (kChunks > 1 && kBlocks > 1) tile_zero<3>();
  const std::uint16_t* const x0 = task.x.bf16(chunks[0].first);
  const std::uint16_t* const x1 = task.x.bf16(chunks[kChunks - 1].first);
  const auto x_stride = reinterpret_cast<const std::byte*>(task.x.bf16(1)) -
                        reinterpret_cast<const std::byte*>(task.x.bf16(0));
  const std::byte* weights = task.weights;
  const int steps = 64 * task.cells / kAmxInputs;
  Prefetch<kBlocks> prefetch(task, steps);
  for (int step = 0; step < steps; ++step, weights += kAmxInputs * kBlockOutputs * 2) {
    prefetch.step();
    tile_load<4>(x0 + kAmxInputs * step, x_stride);
    tile_load<6>(weights, 64);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (kBlocks > 1) {
      tile_load<7>(weights + task.block_bytes, 64);
      tile_dot_bf16<1, 4, 7>();
    }
    if constexpr (kChunks > 1) {
      tile_load<5>(x1 + kAmxInputs * step, x_stride);
      tile_dot_bf16<2, 5, 6>();
      if constexpr (kBlocks > 1) tile_dot_bf16<3, 5, 7>();
    }
  }
  alignas(64) float sums[2][2][kAmxRows][kBlockOutputs];
  tile_store<0>(sums[0][0], 64);
  if constexpr (kBlocks > 1) tile_store<1>(sums[0][1], 64);
  if constexpr (kChunks > 1) tile_store<2>(sums[1][0], 64);
  if constexpr (kChunks > 1 && kBlocks > 1) tile_store<3>(sums[1][1], 64);
  for (int c = 0; c < kChunks; ++c) {
    for (int row = chunks[c].first_new; row < chunks[c].first + rows; ++row) {
      for (int b = 0; b < kBlocks; ++b) {
        store_outputs(task.y + row * task.y_stride, task.first_output + b * kBlockOutputs,
                      task.outputs, task.add, load(sums[c][b][row - chunks[c].first]));
      }
    }
  }
}

void amx_matmul(const ProductTask& product, const Activations& x) noexcept {
  const int rows = x.rows();
  const int chunk_rows = rows < kAmxRows ? rows : kAmxRows;
  const TileShapes shapes(chunk_rows);
  for (int block = product.first_block; block < product.end_block;) {
    const int blocks = product.end_block - block >= 2 ? 2 : 1;
    TileTask task = tile_task(product, x, block, blocks, kWholeBlock);
    for (int row = 0; row < rows;) {
      // What remains behind full chunks is taken as the last 16 rows.
      RowChunk chunks[2];
      int count = 0;
      for (; count < 2 && row < rows; ++count, row += kAmxRows) {
        chunks[count] = {row + chunk_rows <= rows ? row : rows - chunk_rows, row};
      }
      if (blocks == 2) {
        (count == 2 ? amx_tile<2, 2> : amx_tile<2, 1>)(task, chunk_rows, chunks);
      } else {
        (count == 2 ? amx_tile<1, 2> : amx_tile<1, 1>)(task, chunk_rows, chunks);
      }
      task.fetch_begin = task.fetch_end;  // once for all rows
    }
    block += blocks;
  }
}
