#include "engine/device_maps.h"

#include <ggml-alloc.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <stdexcept>

#include "engine/llama_handles.h"
#include "model/gguf_pointers.h"

namespace firp {
namespace {

struct FreeGraphMemory {
  void operator()(ggml_gallocr* freed) const { ggml_gallocr_free(freed); }
};

/// A tensor of the graph that the host fills.
struct Input {
  ggml_tensor* tensor;
  std::vector<std::byte> bytes;
};

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

}  // namespace

/// Weights and graphs on one backend.
struct DeviceMaps::Device {
  struct Map {
    ggml_tensor *weight, *bias, *token;  ///< [d x d], [d], [d x d] or nullptr
  };
  struct Adapter {
    int layer;
    ggml_tensor *down, *up;
  };

  Device(ggml_backend_dev_t device, const Heads& heads, int threads);

  /// Computes the graph that `build` makes, which reads and writes `stream`.
  void compute(ggml_tensor* stream,
               const std::function<ggml_tensor*(ggml_context*, ggml_tensor* stream,
                                                std::vector<Input>& inputs)>& build);

  ggml_backend_dev_t device;
  BackendPointer backend;
  GgmlPointer context;  ///< of the weights
  BufferPointer weights;
  std::vector<Map> maps;
  std::vector<Adapter> adapters;
  std::unique_ptr<ggml_gallocr, FreeGraphMemory> memory;
};

DeviceMaps::Device::Device(ggml_backend_dev_t on, const Heads& heads, int threads)
    : device(on), backend(ggml_backend_dev_init(on, nullptr)) {
  if (backend == nullptr) throw std::runtime_error("a ggml backend could not be started");
  const auto set_threads =
      reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
  if (set_threads != nullptr) set_threads(backend.get(), threads);

  const std::size_t tensors = 3 * heads.steps.size() + 2 * heads.adapters.size();
  context.reset(ggml_init({.mem_size = tensors * ggml_tensor_overhead() + 1024,
                           .mem_buffer = nullptr,
                           .no_alloc = true}));
  std::vector<Input> contents;
  const auto matrix = [&](const std::vector<float>& values, std::int64_t columns) {
    std::vector<ggml_fp16_t> half(values.size());
    ggml_fp32_to_fp16_row(values.data(), half.data(), static_cast<std::int64_t>(half.size()));
    ggml_tensor* const tensor = ggml_new_tensor_2d(
        context.get(), GGML_TYPE_F16, columns, static_cast<std::int64_t>(values.size()) / columns);
    contents.push_back({tensor, bytes_of(half)});
    return tensor;
  };
  const std::int64_t d = heads.base.hidden_size;
  for (const DraftMap& map : heads.steps) {
    ggml_tensor* const bias = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, d);
    contents.push_back({bias, bytes_of(map.bias)});
    maps.push_back({.weight = matrix(map.weight, d),
                    .bias = bias,
                    .token = map.token.empty() ? nullptr : matrix(map.token, d)});
  }
  for (const firp::Adapter& adapter : heads.adapters) {
    adapters.push_back({.layer = adapter.layer,
                        .down = matrix(adapter.down, d),
                        .up = matrix(adapter.up, adapter.rank)});
  }
  weights.reset(ggml_backend_alloc_ctx_tensors(context.get(), backend.get()));
  if (weights == nullptr) throw std::runtime_error("no memory for the draft maps on the device");
  for (const Input& each : contents) {
    ggml_backend_tensor_set(each.tensor, each.bytes.data(), 0, each.bytes.size());
  }
  memory.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend.get())));
}

void DeviceMaps::Device::compute(
    ggml_tensor* stream,
    const std::function<ggml_tensor*(ggml_context*, ggml_tensor*, std::vector<Input>&)>& build) {
  constexpr std::size_t kMostTensors = 64;
  const GgmlPointer graph_context(
      ggml_init({.mem_size = kMostTensors * ggml_tensor_overhead() +
                             ggml_graph_overhead_custom(kMostTensors, false),
                 .mem_buffer = nullptr,
                 .no_alloc = true}));
  // libllama's tensor under a name of our own: the same memory, without the graph behind it.
  ggml_tensor* const alias =
      ggml_new_tensor_2d(graph_context.get(), stream->type, stream->ne[0], stream->ne[1]);
  ggml_backend_buffer_t const buffer =
      stream->view_src != nullptr ? stream->view_src->buffer : stream->buffer;
  if (ggml_backend_tensor_alloc(buffer, alias, stream->data) != GGML_STATUS_SUCCESS) {
    throw std::runtime_error("the residual stream cannot be reached on its device");
  }
  std::vector<Input> inputs;
  ggml_cgraph* const graph = ggml_new_graph_custom(graph_context.get(), kMostTensors, false);
  ggml_build_forward_expand(graph, build(graph_context.get(), alias, inputs));
  for (const Input& input : inputs) ggml_set_input(input.tensor);
  if (!ggml_gallocr_alloc_graph(memory.get(), graph)) {
    throw std::runtime_error("no memory for the draft maps on the device");
  }
  for (const Input& input : inputs) {
    ggml_backend_tensor_set(input.tensor, input.bytes.data(), 0, input.bytes.size());
  }
  if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) {
    throw std::runtime_error("the draft maps could not be computed on the device");
  }
}

DeviceMaps::DeviceMaps(const Heads& heads, int threads) : heads_(heads), threads_(threads) {}
DeviceMaps::~DeviceMaps() = default;

DeviceMaps::Device& DeviceMaps::device_of(const ggml_tensor* stream) {
  ggml_backend_buffer_t const buffer =
      stream->view_src != nullptr ? stream->view_src->buffer : stream->buffer;
  ggml_backend_dev_t device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer));
  if (device == nullptr) device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  const auto known = std::ranges::find(devices_, device, &Device::device);
  if (known != devices_.end()) return **known;
  return *devices_.emplace_back(std::make_unique<Device>(device, heads_, threads_));
}

void DeviceMaps::enter(ggml_tensor* stream, std::span<const Entry> entries) {
  Device& device = device_of(stream);
  const std::int64_t d = stream->ne[0];
  for (int step = 1; step <= heads_.count(); ++step) {
    for (const bool in_stream : {true, false}) {
      std::vector<std::int32_t> from;
      std::vector<std::int64_t> to;
      std::vector<float> sources, embeddings;
      for (const Entry& entry : entries) {
        if (entry.step != step || (entry.source_row >= 0) != in_stream) continue;
        from.push_back(entry.source_row);
        to.push_back(entry.row);
        sources.insert(sources.end(), entry.source.begin(), entry.source.end());
        embeddings.insert(embeddings.end(), entry.embedding.begin(), entry.embedding.end());
      }
      if (to.empty()) continue;
      const auto count = static_cast<std::int64_t>(to.size());
      const Device::Map& map = device.maps[step - 1];
      device.compute(stream, [&](ggml_context* c, ggml_tensor* rows, std::vector<Input>& inputs) {
        const auto input = [&](ggml_tensor* tensor, std::vector<std::byte> bytes) {
          return inputs.emplace_back(Input{tensor, std::move(bytes)}).tensor;
        };
        ggml_tensor* const h =
            in_stream
                ? ggml_get_rows(c, rows,
                                input(ggml_new_tensor_1d(c, GGML_TYPE_I32, count), bytes_of(from)))
                : input(ggml_new_tensor_2d(c, GGML_TYPE_F32, d, count), bytes_of(sources));
        ggml_tensor* p = ggml_add(c, ggml_mul_mat(c, map.weight, h), map.bias);
        if (map.token != nullptr) {
          ggml_tensor* const e =
              input(ggml_new_tensor_2d(c, GGML_TYPE_F32, d, count), bytes_of(embeddings));
          p = ggml_add(c, p, ggml_mul_mat(c, map.token, e));
        }
        return ggml_set_rows(c, rows, p,
                             input(ggml_new_tensor_1d(c, GGML_TYPE_I64, count), bytes_of(to)));
      });
    }
  }
}

void DeviceMaps::adapt(ggml_tensor* stream, int layer, std::span<const int> rows) {
  Device& device = device_of(stream);
  const auto adapter = std::ranges::find(device.adapters, layer, &Device::Adapter::layer);
  if (adapter == device.adapters.end() || rows.empty()) return;
  const auto count = static_cast<std::int64_t>(rows.size());
  device.compute(stream, [&](ggml_context* c, ggml_tensor* all, std::vector<Input>& inputs) {
    ggml_tensor* const from = ggml_new_tensor_1d(c, GGML_TYPE_I32, count);
    ggml_tensor* const to = ggml_new_tensor_1d(c, GGML_TYPE_I64, count);
    inputs.push_back({from, bytes_of(std::vector<std::int32_t>(rows.begin(), rows.end()))});
    inputs.push_back({to, bytes_of(std::vector<std::int64_t>(rows.begin(), rows.end()))});
    ggml_tensor* const h = ggml_get_rows(c, all, from);
    ggml_tensor* const inner =
        ggml_silu(c, ggml_mul_mat(c, adapter->down, ggml_rms_norm(c, h, kAdapterEpsilon)));
    return ggml_set_rows(c, all, ggml_add(c, h, ggml_mul_mat(c, adapter->up, inner)), to);
  });
}

}  // namespace firp
