#include "bench/ggml_products.h"

#include <fmt/format.h>
#include <ggml-alloc.h>
#include <ggml-cpu.h>

#include <type_traits>

#include "base/error.h"

namespace firp {
namespace {

struct Free {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(std::remove_pointer_t<ggml_backend_buffer_t>* buffer) const {
    ggml_backend_buffer_free(buffer);
  }
  void operator()(std::remove_pointer_t<ggml_backend_t>* backend) const {
    ggml_backend_free(backend);
  }
  void operator()(ggml_threadpool* pool) const { ggml_threadpool_free(pool); }
};
template <typename T>
using Handle = std::unique_ptr<T, Free>;
using Buffer = Handle<std::remove_pointer_t<ggml_backend_buffer_t>>;

Handle<ggml_context> make_context(std::size_t tensors, std::size_t graph_nodes) {
  return Handle<ggml_context>(
      ggml_init({.mem_size = tensors * ggml_tensor_overhead() +
                             (graph_nodes > 0 ? ggml_graph_overhead_custom(graph_nodes, false) : 0),
                 .mem_buffer = nullptr,
                 .no_alloc = true}));
}

ggml_backend_dev_t cpu() {
  ggml_backend_dev_t const device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  if (device == nullptr) throw Error("ggml has no CPU backend here");
  return device;
}

/// As libllama asks when it chooses where to put a model's weights.
bool takes(ggml_backend_buffer_type_t form, const Tensor& matrix) {
  const Handle<ggml_context> context = make_context(3, 0);
  ggml_tensor* const weight =
      ggml_new_tensor_2d(context.get(), matrix.type, matrix.columns(), matrix.rows());
  ggml_tensor* const x = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, matrix.columns(), 1);
  const Buffer buffer(ggml_backend_buft_alloc_buffer(form, 0));
  weight->buffer = buffer.get();
  return ggml_backend_dev_supports_op(cpu(), ggml_mul_mat(context.get(), weight, x));
}

}  // namespace

struct GgmlProducts::State {
  ggml_backend_buffer_type_t form;
  Handle<std::remove_pointer_t<ggml_backend_t>> backend;
  Handle<ggml_threadpool> threads;
  Handle<ggml_context> weights_context;
  std::vector<ggml_tensor*> weights;
  Buffer weights_buffer;

  Handle<ggml_context> context;  // of the graph that compute() runs
  Buffer buffer;
  ggml_cgraph* graph = nullptr;
  ggml_tensor* y = nullptr;
};

std::vector<ggml_backend_buffer_type_t> GgmlProducts::forms(const Tensor& matrix) {
  std::vector<ggml_backend_buffer_type_t> forms = {ggml_backend_dev_buffer_type(cpu())};
  const auto extra_types =
      reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
          ggml_backend_dev_backend_reg(cpu()), "ggml_backend_dev_get_extra_bufts"));
  if (extra_types != nullptr) {
    for (ggml_backend_buffer_type_t* each = extra_types(cpu()); each != nullptr && *each != nullptr;
         ++each) {
      if (takes(*each, matrix)) forms.push_back(*each);
    }
  }
  return forms;
}

GgmlProducts::GgmlProducts(const Tensor& matrix, int copies, ggml_backend_buffer_type_t form,
                           int threads)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.form = form;
  s.backend.reset(ggml_backend_dev_init(cpu(), nullptr));
  // As llama.cpp's programs have it; builds with OpenMP use that instead.
  ggml_threadpool_params parameters = ggml_threadpool_params_default(threads);
  s.threads.reset(ggml_threadpool_new(&parameters));
  ggml_backend_cpu_set_n_threads(s.backend.get(), threads);
  ggml_backend_cpu_set_threadpool(s.backend.get(), s.threads.get());

  s.weights_context = make_context(static_cast<std::size_t>(copies), 0);
  for (int i = 0; i < copies; ++i) {
    s.weights.push_back(
        ggml_new_tensor_2d(s.weights_context.get(), matrix.type, matrix.columns(), matrix.rows()));
  }
  s.weights_buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(s.weights_context.get(), form));
  if (s.weights_buffer == nullptr) throw Error("no memory for ggml's copies of the weights");
  // Tells the CPU backend, as libllama does, that these are worth its kernels for weights.
  ggml_backend_buffer_set_usage(s.weights_buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
  for (ggml_tensor* const weight : s.weights) {
    ggml_backend_tensor_set(weight, matrix.data.data(), 0, matrix.data.size());
  }
}

GgmlProducts::~GgmlProducts() = default;
GgmlProducts::GgmlProducts(GgmlProducts&&) noexcept = default;

std::string GgmlProducts::form() const { return ggml_backend_buft_name(state_->form); }

void GgmlProducts::prepare(std::span<const float> x, int rows, int products) {
  State& s = *state_;
  const std::int64_t inputs = s.weights.front()->ne[0], outputs = s.weights.front()->ne[1];
  const auto nodes = static_cast<std::size_t>(products);
  s.context = make_context(nodes + 1, nodes + 1);
  ggml_tensor* const input = ggml_new_tensor_2d(s.context.get(), GGML_TYPE_F32, inputs, rows);
  s.graph = ggml_new_graph_custom(s.context.get(), nodes + 1, false);

  // All products write to the same place, so that only weights come from memory.
  ggml_backend_buffer_type_t const plain = ggml_backend_dev_buffer_type(cpu());
  const std::size_t alignment = ggml_backend_buft_get_alignment(plain);
  const std::size_t input_bytes = (ggml_nbytes(input) + alignment - 1) / alignment * alignment;
  const std::size_t output_bytes = static_cast<std::size_t>(outputs) * rows * sizeof(float);
  s.buffer.reset(ggml_backend_buft_alloc_buffer(plain, input_bytes + output_bytes));
  if (s.buffer == nullptr) throw Error("no memory for ggml's product");
  auto* const base = static_cast<char*>(ggml_backend_buffer_get_base(s.buffer.get()));
  ggml_backend_tensor_alloc(s.buffer.get(), input, base);
  for (int i = 0; i < products; ++i) {
    s.y = ggml_mul_mat(s.context.get(), s.weights[i % s.weights.size()], input);
    ggml_backend_tensor_alloc(s.buffer.get(), s.y, base + input_bytes);
    ggml_build_forward_expand(s.graph, s.y);
  }
  ggml_backend_tensor_set(input, x.data(), 0, ggml_nbytes(input));
}

void GgmlProducts::compute() {
  if (ggml_backend_graph_compute(state_->backend.get(), state_->graph) != GGML_STATUS_SUCCESS) {
    throw Error("ggml could not compute the product");
  }
  // Its threads would spin beside what is measured next.
  ggml_threadpool_pause(state_->threads.get());
}

std::vector<float> GgmlProducts::result() const {
  std::vector<float> y(static_cast<std::size_t>(ggml_nelements(state_->y)));
  ggml_backend_tensor_get(state_->y, y.data(), 0, y.size() * sizeof(float));
  return y;
}

}  // namespace firp
