#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "model/vocabulary.h"

namespace firp {

/// Names, values and meanings as in llama.cpp (docs/flags.md); applied in its order: penalties,
/// top-k, top-p, min-p, temperature.
struct SamplingOptions {
  float temperature = 0;        ///< 0 or less: greedy
  int top_k = 40;               ///< 0 or less: off
  float top_p = 0.95f;          ///< 1: off
  float min_p = 0.05f;          ///< 0: off
  float repeat_penalty = 1.0f;  ///< 1: off; divides positive and multiplies negative logits
  int repeat_last_n = 64;       ///< tokens that count as repeated; 0: off; less: all
  std::uint64_t seed = 0;
  int stream = 0;  ///< of random numbers: sequences with the same one and the same seed draw alike
};

/// How many of a row's best tokens decide what is sampled: 1 where it is greedy, else top-k. 0: all
/// logits are needed.
int tokens_to_sample_from(const SamplingOptions& options);

/// The token at `position` (that of the new token) from the logits of the row before it. `history`
/// is the sequence's tokens up to there. The random number is a function of seed, stream and
/// position alone, so that text with drafts equals text without.
Token sample_token(std::span<const float> logits, std::span<const Token> history, int position,
                   const SamplingOptions& options);

/// The same from the row's tokens_to_sample_from() best tokens, in Engine::best_tokens' order.
Token sample_token(std::span<const TokenLogit> best, int position, const SamplingOptions& options);

}  // namespace firp
