#pragma once

#include <ggml.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace firp {

/// A random model of a supported architecture, small enough to test with; libllama loads it too.
/// Its vocabulary has no tokenizer (tokenizer.ggml.model = "no_vocab").
struct TinyModelOptions {
  /// Those of our own engine, and, for libllama's, "gptneox", "falcon" and "starcoder2".
  std::string architecture = "llama";
  ggml_type type = GGML_TYPE_F32;  ///< of every matrix
  int layers = 3;
  int hidden_size = 256;  ///< a multiple of 256, for the K-quants
  int query_heads = 4;
  int kv_heads = 2;
  int head_size = 64;
  int feed_forward_size = 512;
  int experts = 0;  ///< of a mixture, three of which a row uses; 0: 8 where the architecture is one
  int vocabulary_size = 320;
  bool tied_head = false;
  int sliding_window = 32;    ///< of the architectures that have windows; 0: none
  float logit_spread = 2.5f;  ///< standard deviation of the logits, about
  float rope_base = 10000.0f;
  int rope_dimensions = 0;  ///< elements of a head that are turned; 0: all
  /// rope.scaling.type: "", "linear", "yarn", "longrope"; with factor and original context
  std::string rope_scaling;
  float rope_scaling_factor = 1.0f;
  int rope_original_context = 0;
  bool rope_frequency_factors = false;  ///< a rope_freqs.weight tensor, as Llama 3 files have
  std::uint64_t seed = 1;
};

/// Writes the model.
void write_tiny_model(const std::filesystem::path& path, const TinyModelOptions& options);

/// A recurrent model of one layer, for what must refuse it.
void write_tiny_mamba(const std::filesystem::path& path);

}  // namespace firp
