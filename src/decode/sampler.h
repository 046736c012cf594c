#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"
#include "model/vocabulary.h"

namespace firp {

/// Names, values and meanings as in llama.cpp (docs/flags.md); applied in its order: biases,
/// penalties, top-n-sigma, top-k, typical-p, top-p, min-p, XTC, temperature.
struct SamplingOptions {
  float temperature = 0;        ///< 0 or less: greedy
  float dynatemp_range = 0;     ///< the temperature is less where few tokens are likely, more where
  float dynatemp_exponent = 1;  ///< many are: by so much at most; 0: off
  std::vector<TokenLogit> logit_bias;  ///< added to logits; -infinity: never this token
  float top_n_sigma = -1;  ///< standard deviations of all logits below the greatest; 0 or less: off
  int top_k = 40;          ///< 0 or less: off
  float typical_p = 1;     ///< 1: off
  float top_p = 0.95f;     ///< 1: off
  float min_p = 0.05f;     ///< 0: off
  float xtc_probability = 0;    ///< of leaving out all tokens above the threshold but one; 0: off
  float xtc_threshold = 0.1f;   ///< above 0.5: off
  float repeat_penalty = 1.0f;  ///< 1: off; divides positive and multiplies negative logits
  float frequency_penalty = 0;  ///< taken from a token's logit as often as it occurs
  float presence_penalty = 0;   ///< taken where it occurs
  int repeat_last_n = 64;       ///< tokens that count for these three; 0: off; less: all
  std::uint64_t seed = 0;
  int stream = 0;  ///< of random numbers: sequences with the same one and the same seed draw alike
};

/// None of the tokens is ever chosen.
void forbid(SamplingOptions& options, std::span<const Token> tokens);

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
