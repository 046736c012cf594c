#pragma once

#include <torch/torch.h>

#include <functional>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "train/synthesis.h"
#include "train/upper_layers.h"

namespace firp {

/// Positions that are never anchors: the first few carry the attention sink's outsized states.
inline constexpr int kSkippedPositions = 8;
/// Tokens of the teacher's distribution that are kept (98 % of the mass).
inline constexpr int kTeacherTokens = 64;

/// What the base model says about one text, teacher-forced: everything that its pseudo rows need.
/// Anchors are the positions whose next-but-one token is an answer token; the rows of positions up
/// to tokens - 2 exist (the last token is never run).
struct TeacherText {
  std::vector<Token> tokens;
  bool greedy = false;
  int first_anchor = 0, end_anchor = 0;  ///< [first, end)
  torch::Tensor hidden;   ///< [tokens - 1 - first_anchor, d] F32: h^t from first_anchor on
  torch::Tensor context;  ///< [layers, 2, kv_heads, end_anchor, head_size]: real keys and values
  torch::Tensor top_ids;  ///< [tokens - 1 - first_anchor, 64] int32, most probable first
  torch::Tensor top_probabilities;  ///< the same shape, F32; of the whole vocabulary
  /// h^t' of further layers, in the order asked for; the same shape as `hidden`.
  std::vector<torch::Tensor> extra_hidden;

  int anchors() const { return end_anchor - first_anchor; }
};

/// Runs a text through the engine in chunks. `upper` gives keys and values of its layers; t is its
/// first. `extra_layers` are captured beside it.
TeacherText run_teacher(Engine& engine, const UpperLayers& upper, const Text& text,
                        std::span<const int> extra_layers = {});

/// h^t of some layers only, from the first anchor on: [layers.size()] of [n, d].
std::vector<torch::Tensor> run_hidden(Engine& engine, const Text& text,
                                      std::span<const int> layers);

/// The token behind each of the last `rows` rows of a text (the last token has none): [rows] int64.
torch::Tensor tokens_behind(std::span<const Token> tokens, std::int64_t rows);

/// All tokens of a vocabulary, those that the model writes most often first: by the sum of their
/// probabilities over all rows of the texts.
std::vector<std::int32_t> tokens_by_frequency(std::span<const TeacherText> texts, int vocabulary);

/// Bytes that run_teacher's result holds for each token.
std::size_t teacher_bytes_per_token(const ModelConfig& config, int layer);

}  // namespace firp
