#pragma once

#include <ggml.h>
#include <gguf.h>

#include <memory>

namespace firp {

struct FreeGguf {
  void operator()(gguf_context* context) const { gguf_free(context); }
};
using GgufPointer = std::unique_ptr<gguf_context, FreeGguf>;

struct FreeGgml {
  void operator()(ggml_context* context) const { ggml_free(context); }
};
using GgmlPointer = std::unique_ptr<ggml_context, FreeGgml>;

}  // namespace firp
