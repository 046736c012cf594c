#include "engine/weights.h"

#include <algorithm>
#include <utility>

namespace firp {
namespace {

/// As much of a file is in memory beside its packed form, for each thread.
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

struct LayerMatrix {
  PackedMatrix LayerWeights::*packed;
  const Tensor* LayerTensors::*tensor;
};
constexpr LayerMatrix kLayerMatrices[] = {
    {&LayerWeights::query, &LayerTensors::query}, {&LayerWeights::key, &LayerTensors::key},
    {&LayerWeights::value, &LayerTensors::value}, {&LayerWeights::output, &LayerTensors::output},
    {&LayerWeights::gate, &LayerTensors::gate},   {&LayerWeights::up, &LayerTensors::up},
    {&LayerWeights::down, &LayerTensors::down}};

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

/// Packs `tensor` into `packed`, which has its own or another type, on all threads.
void round_and_pack(const Tensor& tensor, PackedMatrix& packed, ThreadPool& pool) {
  const ggml_type type = packed.format().type;
  const std::int64_t columns = tensor.columns();
  const std::size_t row_bytes = ggml_row_size(type, columns);
  std::vector<std::byte> bytes(type == tensor.type ? 0 : tensor.rows() * row_bytes);
  const Tensor rounded = {.name = tensor.name,
                          .type = type,
                          .shape = tensor.shape,
                          .data = bytes.empty() ? tensor.data : bytes};
  pool.run([&](int thread) {
    const auto [begin, end] = share(packed.blocks(), thread, pool.size());
    if (!bytes.empty()) {
      std::vector<float> values(columns);
      const std::int64_t last = std::min<std::int64_t>(end * kBlockOutputs, tensor.rows());
      for (std::int64_t row = begin * kBlockOutputs; row < last; ++row) {
        dequantize_row(tensor, row, values);
        ggml_quantize_chunk(type, values.data(), bytes.data() + row * row_bytes, 0, 1, columns,
                            nullptr);
      }
    }
    packed.pack(rounded, begin, end);
  });
}

}  // namespace

Weights::Weights(const Model& model, ThreadPool& pool)
    : layers(model.layers().size()), output_norm(dequantize(model.output_norm())) {
  std::vector<std::pair<PackedMatrix*, const Tensor*>> matrices;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    read_vectors(model.layers()[i], layers[i]);
    for (const LayerMatrix& matrix : kLayerMatrices) {
      matrices.emplace_back(&(layers[i].*matrix.packed), model.layers()[i].*matrix.tensor);
    }
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
      const auto [begin, end] = share(matrix->blocks(), thread, pool.size());
      const std::size_t block_bytes =
          kBlockOutputs * ggml_row_size(tensor->type, tensor->columns());
      const int step = static_cast<int>(std::max<std::size_t>(1, kChunkBytes / block_bytes));
      for (int first = begin; first < end; first += step) {
        const int last = std::min(first + step, end);
        matrix->pack(*tensor, first, last);
        if (!model.has_file()) continue;
        const std::size_t from = first * block_bytes;
        const std::size_t to = std::min(last * block_bytes, tensor->data.size());
        model.file().release(tensor->data.subspan(from, to - from));
      }
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
  for (const LayerMatrix& each : kLayerMatrices) {
    const Tensor& matrix = *(layer.*each.tensor);
    const ggml_type type = rough ? rough_type(matrix, kRoughLayerType) : matrix.type;
    bytes += matrix.rows() * ggml_row_size(type, matrix.columns());
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
    for (const LayerMatrix& matrix : kLayerMatrices) {
      take(*(model.layers()[i].*matrix.tensor), kRoughLayerType,
           &(weights.layers[i].*matrix.packed), layers[i].*matrix.packed);
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
    round_and_pack(*copy.tensor, *copy.packed, pool);
  }
}

}  // namespace firp
