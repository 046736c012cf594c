#include "engine/weights.h"

#include <algorithm>
#include <utility>

namespace firp {
namespace {

/// As much of a file is in memory beside its packed form, for each thread.
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

void read_vectors(const LayerTensors& from, LayerWeights& to) {
  const auto read = [](const Tensor* tensor) {
    return tensor != nullptr ? dequantize(*tensor) : std::vector<float>{};
  };
  to.attention_norm = read(from.attention_norm);
  to.query_bias = read(from.query_bias);
  to.key_bias = read(from.key_bias);
  to.value_bias = read(from.value_bias);
  to.query_norm = read(from.query_norm);
  to.key_norm = read(from.key_norm);
  to.feed_forward_norm = read(from.feed_forward_norm);
}

/// Some rows of a matrix, their bytes in `memory`.
Tensor rows_of(const Tensor& matrix, std::span<const std::int32_t> rows,
               std::vector<std::byte>& memory) {
  const std::size_t row_bytes = ggml_row_size(matrix.type, matrix.columns());
  memory.reserve(rows.size() * row_bytes);
  for (const std::int32_t row : rows) {
    const auto from = matrix.data.subspan(row * row_bytes, row_bytes);
    memory.insert(memory.end(), from.begin(), from.end());
  }
  return {.name = matrix.name,
          .type = matrix.type,
          .shape = {matrix.columns(), static_cast<std::int64_t>(rows.size()), 1, 1},
          .data = memory};
}

/// Packs this thread's share of a matrix, some rows at a time, and lets go of the file's bytes that
/// it has read. `rounded`: room for the matrix in the packed type, where that is another one.
void pack_share(const Model& model, const Tensor& tensor, PackedMatrix& packed,
                std::span<std::byte> rounded, int thread, int threads) {
  const ggml_type type = packed.format().type;
  const std::int64_t columns = tensor.columns();
  const std::size_t row_bytes = ggml_row_size(tensor.type, columns);
  const std::size_t rounded_row_bytes = ggml_row_size(type, columns);
  const bool same = type == tensor.type;
  const Tensor source = {.name = tensor.name,
                         .type = type,
                         .shape = tensor.shape,
                         .data = same ? tensor.data : rounded};
  std::vector<float> values(same ? 0 : columns);
  const auto [begin, end] = share(packed.blocks(), thread, threads);
  const int step =
      static_cast<int>(std::max<std::size_t>(1, kChunkBytes / (kBlockOutputs * row_bytes)));
  for (int first = begin; first < end; first += step) {
    const int last = std::min(first + step, end);
    const std::int64_t first_row = std::int64_t{first} * kBlockOutputs;
    const std::int64_t end_row = std::min(std::int64_t{last} * kBlockOutputs, tensor.rows());
    for (std::int64_t row = first_row; !same && row < end_row; ++row) {
      dequantize_row(tensor, row, values);
      ggml_quantize_chunk(type, values.data(), rounded.data() + row * rounded_row_bytes, 0, 1,
                          columns, nullptr);
    }
    packed.pack(source, first, last);
    if (!model.has_file()) continue;
    model.file().release(
        tensor.data.subspan(first_row * row_bytes, (end_row - first_row) * row_bytes));
  }
}

}  // namespace

Weights::Weights(const Model& model, ThreadPool& pool)
    : layers(model.layers().size()), output_norm(dequantize(model.output_norm())) {
  std::vector<std::pair<PackedMatrix*, const Tensor*>> matrices;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    read_vectors(model.layers()[i], layers[i]);
    const auto packed = layers[i].matrices();
    const auto tensors = model.layers()[i].matrices();
    for (std::size_t k = 0; k < packed.size(); ++k) matrices.emplace_back(packed[k], tensors[k]);
  }
  matrices.push_back({&head, &model.head()});

  std::size_t bytes = 0;
  for (const auto& [matrix, tensor] : matrices) {
    bytes += PackedMatrix::packed_bytes(*tensor, tensor->type);
  }
  memory_ = AlignedBytes(bytes);
  std::byte* at = memory_.data();
  for (const auto& [matrix, tensor] : matrices) {
    *matrix = PackedMatrix(*tensor, tensor->type, at);
    at += matrix->bytes();
  }
  pool.run([&](int thread) {
    for (const auto& [matrix, tensor] : matrices) {
      pack_share(model, *tensor, *matrix, {}, thread, pool.size());
    }
  });
}

ggml_type rough_type(const Tensor& matrix, ggml_type rough) {
  const double bits = 8.0 * static_cast<double>(ggml_type_size(matrix.type)) /
                      static_cast<double>(ggml_blck_size(matrix.type));
  const bool divides = matrix.columns() % ggml_blck_size(rough) == 0;
  return bits > kMostRoughBits && divides ? rough : matrix.type;
}

std::size_t layer_bytes(const LayerTensors& layer, bool rough) {
  std::size_t bytes = 0;
  for (const Tensor* const matrix : layer.matrices()) {
    const ggml_type type = rough ? rough_type(*matrix, kRoughLayerType) : matrix->type;
    bytes += matrix->rows() * ggml_row_size(type, matrix->columns());
  }
  return bytes;
}

DraftWeights::DraftWeights(const Model& model, const Weights& weights, int first_layer,
                           std::span<const std::int32_t> vocabulary, bool rough, ThreadPool& pool) {
  std::vector<std::byte> row_bytes;
  const Tensor rows =
      vocabulary.empty() ? model.head() : rows_of(model.head(), vocabulary, row_bytes);
  struct Copy {
    PackedMatrix* packed;
    const Tensor* tensor;
    ggml_type type;
  };
  std::vector<Copy> copies;
  const auto take = [&](const Tensor& tensor, ggml_type rough_to, const PackedMatrix* exact,
                        PackedMatrix& to) {
    const ggml_type type = rough ? rough_type(tensor, rough_to) : tensor.type;
    if (exact != nullptr && type == tensor.type) {
      to = exact->view();
    } else {
      copies.push_back({&to, &tensor, type});
    }
  };
  layers.resize(model.layers().size());
  for (std::size_t i = first_layer; i < layers.size(); ++i) {
    read_vectors(model.layers()[i], layers[i]);
    const auto packed = layers[i].matrices();
    const auto exact = weights.layers[i].matrices();
    const auto tensors = model.layers()[i].matrices();
    for (std::size_t k = 0; k < packed.size(); ++k) {
      take(*tensors[k], kRoughLayerType, exact[k], *packed[k]);
    }
  }
  if (copies.empty()) layers.clear();
  take(rows, kRoughHeadType, vocabulary.empty() ? &weights.head : nullptr, head);

  std::size_t bytes = 0;
  for (const Copy& copy : copies) bytes += PackedMatrix::packed_bytes(*copy.tensor, copy.type);
  memory_ = AlignedBytes(bytes);
  std::byte* at = memory_.data();
  for (const Copy& copy : copies) {
    *copy.packed = PackedMatrix(*copy.tensor, copy.type, at);
    at += copy.packed->bytes();
    const bool same = copy.type == copy.tensor->type;
    std::vector<std::byte> rounded(
        same ? 0 : copy.tensor->rows() * ggml_row_size(copy.type, copy.tensor->columns()));
    pool.run([&](int thread) {
      pack_share(model, *copy.tensor, *copy.packed, rounded, thread, pool.size());
    });
  }
}

}  // namespace firp
