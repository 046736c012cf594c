#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/gguf_file.h"

namespace firp {

/// Rotary position embedding. Pair k of a head is turned by the angle position * frequencies[k],
/// and cosine and sine are multiplied by `magnitude` (YaRN, LongRoPE; else 1). All of a file's
/// frequency scaling (linear, YaRN, the `rope_freqs.weight` tensor of Llama 3, LongRoPE's factors)
/// is in the frequencies, as llama.cpp computes it.
struct RopeConfig {
  /// true: pair k is elements (2k, 2k+1) (ggml's NORM); false: (k, k + dimensions/2) (NEOX).
  bool interleaved = true;
  int dimensions = 0;              ///< leading elements of a head that are turned
  std::vector<float> frequencies;  ///< [dimensions / 2], radians a position
  /// LongRoPE's, for contexts longer than `original_context`; else empty.
  std::vector<float> long_frequencies = {};
  int original_context = 0;
  float magnitude = 1.0f;

  /// Those of a context of so many positions, which llama.cpp rounds up to a multiple of 256.
  std::span<const float> frequencies_for(int context) const {
    const bool is_long = (std::int64_t{context} + 255) / 256 * 256 > original_context;
    return is_long && !long_frequencies.empty() ? long_frequencies : frequencies;
  }
};

/// Without scaling: [dimensions / 2], radians a position.
std::vector<double> rope_frequencies(float base, int dimensions);

/// What the forward pass needs to know about a decoder-only transformer. The architectures differ
/// by the flags at the end, and by nothing else.
struct ModelConfig {
  std::string architecture;  ///< general.architecture: "llama", "qwen2", "qwen3"
  std::string name;          ///< general.name, or the file's name

  int layers = 0;
  int hidden_size = 0;  ///< d: width of the residual stream
  int query_heads = 0;
  int kv_heads = 0;
  int head_size = 0;  ///< of a query, a key and a value head alike
  int feed_forward_size = 0;
  int vocabulary_size = 0;
  int trained_context = 0;  ///< positions that the model was trained for
  float rms_norm_epsilon = 0;
  RopeConfig rope;

  bool qkv_bias = false;
  bool qk_norm = false;    ///< RMS norm of each query and key head before RoPE
  bool tied_head = false;  ///< the head is the token embedding

  int query_size() const { return query_heads * head_size; }
  int kv_size() const { return kv_heads * head_size; }
};

/// Reads and checks the configuration. Errors: an architecture other than those above (the message
/// lists them), missing or impossible values, features that the forward pass does not have (sliding
/// windows, mixtures of experts, ...).
ModelConfig read_model_config(const GgufFile& file);

}  // namespace firp
