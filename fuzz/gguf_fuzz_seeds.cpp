// Writes the inputs that gguf_fuzz starts from: as small as they come, since most of a real file is
// tensor data that nothing branches on.

#include <fmt/format.h>
#include <gguf.h>

#include <cstdio>
#include <vector>

#include "base/error.h"
#include "model/heads.h"
#include "model/model.h"
#include "model/tiny_model.h"

namespace {

void write_tokenizer(const std::filesystem::path& path, const char* kind) {
  gguf_context* gguf = gguf_init_empty();
  gguf_set_val_str(gguf, "general.architecture", "llama");
  gguf_set_val_str(gguf, "tokenizer.ggml.model", kind);
  gguf_set_val_str(gguf, "tokenizer.ggml.pre", "default");
  const char* tokens[] = {"<s>", "a", "b", "ab", "\u010a", "\u0120", "<0x0A>"};
  const float scores[] = {0, -1, -2, -3, -4, -5, -6};
  const std::int32_t types[] = {3, 1, 1, 1, 1, 1, 6};
  const char* merges[] = {"a b"};
  gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", tokens, 7);
  gguf_set_arr_data(gguf, "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores, 7);
  gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types, 7);
  gguf_set_arr_str(gguf, "tokenizer.ggml.merges", merges, 1);
  gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", 0);
  gguf_set_val_bool(gguf, "tokenizer.ggml.add_bos_token", true);
  gguf_set_val_str(gguf, "tokenizer.chat_template", "{{<|im_start|>}}");
  gguf_write_to_file(gguf, path.c_str(), false);
  gguf_free(gguf);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: gguf_fuzz_seeds DIRECTORY\n");
    return 1;
  }
  const std::filesystem::path directory = argv[1];
  try {
    for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
      firp::TinyModelOptions options;
      options.architecture = architecture;
      options.type = GGML_TYPE_Q4_0;
      options.layers = 2;
      options.hidden_size = 32;
      options.query_heads = 4;
      options.kv_heads = 2;
      options.head_size = 8;
      options.feed_forward_size = 32;
      options.vocabulary_size = 4;
      options.tied_head = true;
      options.rope_scaling = "yarn";
      options.rope_scaling_factor = 2;
      options.rope_original_context = 1024;
      options.rope_frequency_factors = options.architecture == "llama";
      const std::filesystem::path path = directory / fmt::format("{}.gguf", architecture);
      firp::write_tiny_model(path, options);

      firp::Heads heads;
      heads.base = firp::Model(path).identity();
      heads.base.hidden_size = 4;
      heads.steps.assign(2, {.layer = 1,
                             .weight = std::vector<float>(16, 0.5f),
                             .bias = std::vector<float>(4, 0.25f)});
      heads.training = {.command = "firp train", .top1 = {0.5f, 0.25f}, .top5 = {0.75f, 0.5f}};
      firp::write_heads(heads, directory / fmt::format("{}-heads.gguf", architecture));
    }
    write_tokenizer(directory / "gpt2-tokenizer.gguf", "gpt2");
    write_tokenizer(directory / "llama-tokenizer.gguf", "llama");
  } catch (const firp::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
