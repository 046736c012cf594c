// What a user may be handed: any bytes as a model or heads file give an Error or a usable object,
// and never a crash, a hang or a large allocation.
//
//   cmake -B build-fuzz -DFIRP_FUZZ=ON -DCMAKE_CXX_COMPILER=clang++ -DFIRP_TRAIN=OFF
//   cmake --build build-fuzz --target gguf_fuzz gguf_fuzz_seeds
//   mkdir seeds && build-fuzz/fuzz/gguf_fuzz_seeds seeds
//   build-fuzz/fuzz/gguf_fuzz -dict=fuzz/gguf.dict -max_len=16384 -malloc_limit_mb=256 seeds

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/error.h"
#include "model/heads.h"
#include "model/model.h"
#include "model/vocabulary.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int file = memfd_create("fuzz", MFD_CLOEXEC);
  static const std::string path = fmt::format("/proc/self/fd/{}", file);
  if (ftruncate(file, 0) != 0 || pwrite(file, data, size, 0) != static_cast<ssize_t>(size)) {
    std::abort();
  }
  try {
    const firp::Model model(path);
    model.identity();
    for (const firp::LayerTensors& layer : model.layers()) {
      firp::dequantize(*layer.attention_norm);
      firp::dequantize(*layer.query);
    }
    firp::read_heads(path, &model);
  } catch (const firp::Error&) {
  }
  try {
    firp::read_heads(path, nullptr);
  } catch (const firp::Error&) {
  }
  try {
    const firp::Vocabulary vocabulary(path);
    for (const firp::Token token : vocabulary.tokenize("ab a\nx <s>", true)) {
      vocabulary.piece(token, true);
    }
    if (vocabulary.has_chat_template()) {
      const std::vector<firp::ChatMessage> messages = {{"user", "Hi"}};
      vocabulary.apply_chat_template(messages, true);
    }
  } catch (const firp::Error&) {
  }
  return 0;
}
