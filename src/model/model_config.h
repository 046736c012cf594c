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

/// What differs from layer to layer.
struct LayerConfig {
  int window = 0;  ///< a row sees so many positions, the last of them its own; 0: all
  int rope = 0;    ///< which of ModelConfig::ropes turns queries and keys; -1: none
};

enum class Activation { kSilu, kGelu };  ///< kGelu: the form with tanh

/// RMS norms of queries and keys before RoPE: of each head by itself, or of all heads together.
enum class HeadNorms { kNone, kEach, kAll };

/// A row's weights of the experts that it uses: softmax over all experts, or over the used ones.
enum class ExpertWeights { kOfAll, kOfUsed };

/// What the forward pass needs to know about a decoder-only transformer. Architectures are rows of
/// a table (model_config.cpp) that fill this in; nothing else asks for their names.
struct ModelConfig {
  std::string architecture;  ///< general.architecture
  std::string name;          ///< general.name, or the file's name

  int layers = 0;
  int hidden_size = 0;  ///< d: width of the residual stream
  int query_heads = 0;
  int kv_heads = 0;
  int head_size = 0;          ///< of a query, a key and a value head alike
  int feed_forward_size = 0;  ///< of an expert, in a mixture
  int experts = 0;  ///< feed-forwards of a layer, of which a row uses a few; 0: no mixture
  int experts_used = 0;
  ExpertWeights expert_weights = ExpertWeights::kOfUsed;
  int vocabulary_size = 0;
  int trained_context = 0;  ///< positions that the model was trained for
  float rms_norm_epsilon = 0;

  std::vector<LayerConfig> by_layer;  ///< [layers]
  std::vector<RopeConfig> ropes;
  Activation activation = Activation::kSilu;
  HeadNorms head_norms = HeadNorms::kNone;
  bool norms_before = true;  ///< of what attention and feed-forward read
  bool norms_after = false;  ///< of what they add to the residual stream
  bool qkv_bias = false;
  bool tied_head = false;      ///< the head is the token embedding
  bool fused_qkv = false;      ///< the file holds queries, keys and values as one tensor
  bool fused_gate_up = false;  ///< and gate and up

  float embedding_scale =
      1;  ///< of token embeddings where layers read them; maps read the table's rows
  float residual_scale = 1;  ///< of what attention and feed-forward add
  float logit_scale = 1;
  float attention_scale = 0;    ///< of the products of queries and keys
  float attention_softcap = 0;  ///< scores s are softcap * tanh(s / softcap); 0: as they are
  float logit_softcap = 0;      ///< of logits, likewise

  int query_size() const { return query_heads * head_size; }
  int kv_size() const { return kv_heads * head_size; }
};

/// Reads and checks the configuration. Errors: an architecture that the table lacks (the message
/// lists them), missing or impossible values, features that the forward pass does not have
/// (attention that is not causal, ...).
ModelConfig read_model_config(const GgufFile& file);

}  // namespace firp
