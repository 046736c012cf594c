#include "engine/weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "engine/packed_file.h"
#include "model/cache_directory.h"

namespace firp {
namespace {

/// As much of a file is in memory beside its packed form, for each thread.
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

void read_vectors(const LayerTensors& from, LayerWeights& to) {
  for (std::size_t k = 0; k < from.vectors().size(); ++k) {
    const Tensor* const tensor = *from.vectors()[k];
    if (tensor != nullptr) *to.vectors()[k] = dequantize(*tensor);
  }
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

/// A matrix that is to be packed, from a tensor, rounded to a type where that is another one.
struct Packing {
  PackedMatrix* packed;
  const Tensor* tensor;
  ggml_type type;
};

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

/// Memory with all matrices in it, one behind the other: as they were kept in `file`, or packed,
/// and then kept there.
AlignedBytes pack_all(const Model& model, std::span<const Packing> packings,
                      const std::optional<PackedFile>& file, ThreadPool& pool) {
  std::size_t bytes = 0;
  for (const Packing& p : packings) bytes += PackedMatrix::packed_bytes(*p.tensor, p.type);
  const bool keep = file && bytes > 0;
  std::optional<AlignedBytes> kept = keep ? map_packed_file(*file, bytes) : std::nullopt;
  AlignedBytes memory = kept ? std::move(*kept) : AlignedBytes(bytes);
  std::byte* at = memory.data();
  for (const Packing& p : packings) {
    *p.packed = PackedMatrix(*p.tensor, p.type, at);
    at += p.packed->bytes();
    if (kept) continue;
    const bool same = p.type == p.tensor->type;
    std::vector<std::byte> rounded(
        same ? 0 : p.tensor->rows() * ggml_row_size(p.type, p.tensor->columns()));
    pool.run(
        [&](int thread) { pack_share(model, *p.tensor, *p.packed, rounded, thread, pool.size()); });
  }
  if (keep && !kept) write_packed_file(*file, {memory.data(), bytes});
  return memory;
}

}  // namespace

std::optional<std::filesystem::path> packed_weights_path(const Model& model) {
  return model.has_file() ? cache_file("packed", model.file()) : std::nullopt;
}

Weights::Weights(const Model& model, ThreadPool& pool, bool packed_cache)
    : layers(model.layers().size()), output_norm(dequantize(model.output_norm())) {
  std::vector<Packing> packings;
  const auto add = [&](PackedMatrix& packed, const Tensor& tensor) {
    packings.push_back({&packed, &tensor, tensor.type});
  };
  for (std::size_t i = 0; i < layers.size(); ++i) {
    read_vectors(model.layers()[i], layers[i]);
    const auto packed = layers[i].matrices();
    const auto tensors = model.layers()[i].matrices();
    for (std::size_t k = 0; k < packed.size(); ++k) {
      if (*tensors[k] != nullptr) add(*packed[k], **tensors[k]);
    }
  }
  add(head, model.head());
  std::optional<PackedFile> file;
  if (const auto path = packed_cache ? packed_weights_path(model) : std::nullopt) {
    file = {*path, model.file().stamp()};
  }
  memory_ = pack_all(model, packings, file, pool);
}

ggml_type rough_type(const Tensor& matrix, ggml_type rough) {
  const double bits = 8.0 * static_cast<double>(ggml_type_size(matrix.type)) /
                      static_cast<double>(ggml_blck_size(matrix.type));
  const bool divides = matrix.columns() % ggml_blck_size(rough) == 0;
  return bits > kMostRoughBits && divides ? rough : matrix.type;
}

std::size_t Weights::read_bytes(const ModelConfig& config) const {
  double unread = 0;
  for (const LayerWeights& layer : layers) {
    for (const PackedMatrix* const matrix : layer.matrices()) {
      if (matrix->outputs() == 0) continue;
      unread += (1 - share_read(config, layer, matrix)) * static_cast<double>(matrix->bytes());
    }
  }
  return bytes() - static_cast<std::size_t>(unread);
}

std::size_t layer_bytes(const ModelConfig& config, const LayerTensors& layer, bool rough) {
  double bytes = 0;
  for (const Tensor* const* const matrix : layer.matrices()) {
    if (*matrix == nullptr) continue;
    const Tensor& tensor = **matrix;
    const ggml_type type = rough ? rough_type(tensor, kRoughLayerType) : tensor.type;
    bytes += share_read(config, layer, matrix) * static_cast<double>(tensor.rows()) *
             static_cast<double>(ggml_row_size(type, tensor.columns()));
  }
  return static_cast<std::size_t>(bytes);
}

DraftWeights::DraftWeights(const Model& model, const Weights& weights, int first_layer,
                           std::span<const std::int32_t> vocabulary, bool rough, ThreadPool& pool,
                           bool packed_cache) {
  std::vector<std::byte> row_bytes;
  const Tensor rows =
      vocabulary.empty() ? model.head() : rows_of(model.head(), vocabulary, row_bytes);
  std::vector<Packing> copies;
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
      if (*tensors[k] == nullptr) continue;
      // Other experts would be another model.
      const bool decides = packed[k] == &layers[i].router;
      take(**tensors[k], decides ? (*tensors[k])->type : kRoughLayerType, exact[k], *packed[k]);
    }
  }
  if (copies.empty()) layers.clear();
  take(rows, kRoughHeadType, vocabulary.empty() ? &weights.head : nullptr, head);

  std::optional<PackedFile> file;
  if (packed_cache && model.has_file()) {
    if (const auto path = cache_file("packed-drafts", model.file())) {
      const std::string_view tokens(reinterpret_cast<const char*>(vocabulary.data()),
                                    vocabulary.size_bytes());
      file = {*path, fmt::format("{}; from layer {}, {:016x}", model.file().stamp(), first_layer,
                                 std::hash<std::string_view>()(tokens))};
    }
  }
  memory_ = pack_all(model, copies, file, pool);
}

}  // namespace firp
