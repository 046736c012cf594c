#pragma once

#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <llama.h>

#include <memory>

namespace firp {

struct FreeLlama {
  void operator()(llama_model* freed) const { llama_model_free(freed); }
  void operator()(llama_context* freed) const { llama_free(freed); }
  void operator()(ggml_threadpool* freed) const { ggml_threadpool_free(freed); }
};
using LlamaModelPointer = std::unique_ptr<llama_model, FreeLlama>;
using LlamaContextPointer = std::unique_ptr<llama_context, FreeLlama>;
using GgmlThreadpoolPointer = std::unique_ptr<ggml_threadpool, FreeLlama>;

struct FreeBackend {
  void operator()(ggml_backend* freed) const { ggml_backend_free(freed); }
  void operator()(ggml_backend_buffer* freed) const { ggml_backend_buffer_free(freed); }
};
using BackendPointer = std::unique_ptr<ggml_backend, FreeBackend>;
using BufferPointer = std::unique_ptr<ggml_backend_buffer, FreeBackend>;

}  // namespace firp
