#pragma once

#include <gguf.h>

#include <cstdint>
#include <filesystem>
#include <stdexcept>

#include "model/gguf_pointers.h"
#include "model/part_name.h"

namespace firp {

/// Splits a model's file into `parts` files STEM-00001-of-0000N.gguf, as llama-gguf-split does: the
/// first has the metadata, each some of the tensors. Returns the first.
inline std::filesystem::path write_parts(const std::filesystem::path& whole,
                                         const std::filesystem::path& stem, int parts) {
  ggml_context* read = nullptr;
  const GgufPointer from(gguf_init_from_file(whole.c_str(), {.no_alloc = false, .ctx = &read}));
  const GgmlPointer tensors(read);
  const PartName name = {.stem = stem, .parts = parts};
  const std::int64_t count = gguf_get_n_tensors(from.get());
  for (int part = 0; part < parts; ++part) {
    const GgufPointer to(gguf_init_empty());
    if (part == 0) gguf_set_kv(to.get(), from.get());
    gguf_set_val_u16(to.get(), "split.no", static_cast<std::uint16_t>(part));
    gguf_set_val_u16(to.get(), "split.count", static_cast<std::uint16_t>(parts));
    gguf_set_val_i32(to.get(), "split.tensors.count", static_cast<std::int32_t>(count));
    for (std::int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
      gguf_add_tensor(to.get(),
                      ggml_get_tensor(tensors.get(), gguf_get_tensor_name(from.get(), i)));
    }
    if (!gguf_write_to_file(to.get(), name.file_of(part + 1).c_str(), /*only_meta=*/false)) {
      throw std::runtime_error("cannot write the parts of a model");
    }
  }
  return name.file_of(1);
}

}  // namespace firp
