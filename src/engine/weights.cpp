#include "engine/weights.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <utility>

namespace firp {
namespace {

std::vector<float> read_vector(const Tensor* tensor) {
  return tensor != nullptr ? dequantize(*tensor) : std::vector<float>{};
}

}  // namespace

Weights::Weights(const Model& model, ThreadPool& pool)
    : layers(model.layers().size()), output_norm(dequantize(model.output_norm())) {
  std::vector<std::pair<PackedMatrix*, const Tensor*>> matrices = {{&head, &model.head()}};
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

  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  pool.run([&](int) {
    for (std::size_t i; (i = next.fetch_add(1)) < matrices.size();) {
      try {
        *matrices[i].first = PackedMatrix(*matrices[i].second);
      } catch (...) {
        const std::scoped_lock lock(failure_mutex);
        failure = std::current_exception();
      }
    }
  });
  if (failure) std::rethrow_exception(failure);
}

std::size_t Weights::bytes() const {
  std::size_t sum = head.bytes();
  for (const LayerWeights& layer : layers) {
    for (const PackedMatrix* matrix : {&layer.query, &layer.key, &layer.value, &layer.output,
                                       &layer.gate, &layer.up, &layer.down}) {
      sum += matrix->bytes();
    }
  }
  return sum;
}

}  // namespace firp
