#include "engine/weights.h"

#include <algorithm>
#include <utility>

namespace firp {
namespace {

std::vector<float> read_vector(const Tensor* tensor) {
  return tensor != nullptr ? dequantize(*tensor) : std::vector<float>{};
}

/// As much of a file is in memory beside its packed form, for each thread.
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

}  // namespace

Weights::Weights(const Model& model, ThreadPool& pool)
    : layers(model.layers().size()), output_norm(dequantize(model.output_norm())) {
  std::vector<std::pair<PackedMatrix*, const Tensor*>> matrices;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    LayerWeights& to = layers[i];
    const LayerTensors& from = model.layers()[i];
    to.attention_norm = read_vector(from.attention_norm);
    to.query_bias = read_vector(from.query_bias);
    to.key_bias = read_vector(from.key_bias);
    to.value_bias = read_vector(from.value_bias);
    to.query_norm = read_vector(from.query_norm);
    to.key_norm = read_vector(from.key_norm);
    to.feed_forward_norm = read_vector(from.feed_forward_norm);
    for (const auto& matrix : {std::pair{&to.query, from.query},
                               {&to.key, from.key},
                               {&to.value, from.value},
                               {&to.output, from.output},
                               {&to.gate, from.gate},
                               {&to.up, from.up},
                               {&to.down, from.down}}) {
      matrices.push_back(matrix);
    }
  }
  matrices.push_back({&head, &model.head()});

  std::size_t bytes = 0;
  for (const auto& [matrix, tensor] : matrices) bytes += PackedMatrix::packed_bytes(*tensor);
  memory_ = AlignedBytes(bytes);
  std::byte* at = memory_.data();
  for (const auto& [matrix, tensor] : matrices) {
    *matrix = PackedMatrix(*tensor, at);
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

}  // namespace firp
