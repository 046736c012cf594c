#include "bench/random_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <utility>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/tensor_types.h"

namespace firp {
namespace {

std::string lower_case(std::string_view text) {
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return std::tolower(c); });
  return lower;
}

}  // namespace

RandomWeights::RandomWeights(std::string name, ggml_type type, int outputs, int inputs,
                             float deviation, unsigned seed) {
  require_whole_blocks(type, inputs);
  constexpr int kMostDistinctRows = 64;
  const int distinct = std::min(outputs, kMostDistinctRows);
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, deviation);
  std::vector<float> values(static_cast<std::size_t>(distinct) * inputs);
  for (float& value : values) value = normal(generator);
  const std::size_t row_bytes = ggml_row_size(type, inputs);
  bytes_.resize(row_bytes * outputs);
  ggml_quantize_chunk(type, values.data(), bytes_.data(), 0, distinct, inputs, nullptr);
  for (int row = distinct; row < outputs; ++row) {
    std::copy_n(bytes_.data() + row_bytes * (row % distinct), row_bytes,
                bytes_.data() + row_bytes * row);
  }
  tensor_ = {.name = std::move(name), .type = type, .shape = {inputs, outputs, 1, 1}};
  tensor_.data = bytes_;
}

ggml_type parse_matrix_type(std::string_view name) {
  for (const ggml_type type : kMatrixTypes) {
    if (lower_case(name) == lower_case(ggml_type_name(type))) return type;
  }
  throw Error(fmt::format("there is no weight type '{}' (there are: {})", one_line(name),
                          tensor_type_names()));
}

bool has_whole_blocks(ggml_type type, int inputs) { return inputs % ggml_blck_size(type) == 0; }

void require_whole_blocks(ggml_type type, int inputs) {
  if (!has_whole_blocks(type, inputs)) {
    throw Error(fmt::format("rows of {} weights cannot be {}: that has blocks of {}", inputs,
                            ggml_type_name(type), ggml_blck_size(type)));
  }
}

}  // namespace firp
