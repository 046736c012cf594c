#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "decode/dry.h"
#include "engine/engine.h"
#include "model/vocabulary.h"

namespace firp {

/// llama.cpp's samplers, in its order.
enum class Sampler {
  kPenalties,
  kDry,
  kTopNSigma,
  kTopK,
  kTypicalP,
  kTopP,
  kMinP,
  kXtc,
  kTemperature,
  kAdaptiveP,  ///< not in the order unless it is asked for: chooses the token in the end
};

inline constexpr std::size_t kMostSamplers = 64;  ///< in an order; one may stand there repeatedly
/// The samplers by llama.cpp's names and other ways to write them, or by its letters. An Error
/// where one is unknown, or there are too many.
std::vector<Sampler> samplers_of_names(std::span<const std::string> names);
std::vector<Sampler> samplers_of_letters(std::string_view letters);

/// Keeps the surprise of tokens near tau bits (arXiv 2007.14966). Biases and the temperature apply,
/// no other sampler does.
struct MirostatOptions {
  int version = 0;   ///< 1 or 2; 0: off
  float tau = 5;     ///< bits
  float eta = 0.1f;  ///< how fast it learns
};

/// Keeps the probability of tokens near a target, where kAdaptiveP is among the samplers.
struct AdaptiveOptions {
  float target = -1;   ///< less than 0: off
  float decay = 0.9f;  ///< of what came before, from token to token; at most 0.99
};

/// Names, values and meanings as in llama.cpp (docs/flags.md). Biases apply first.
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
  int min_keep = 0;        ///< tokens that typical_p, top_p, min_p and XTC leave at least
  float xtc_probability = 0;    ///< of leaving out all tokens above the threshold but one; 0: off
  float xtc_threshold = 0.1f;   ///< above 0.5: off
  float repeat_penalty = 1.0f;  ///< 1: off; divides positive and multiplies negative logits
  float frequency_penalty = 0;  ///< taken from a token's logit as often as it occurs
  float presence_penalty = 0;   ///< taken where it occurs
  int repeat_last_n = 64;       ///< tokens that count for these three; 0: off; less: all
  DryOptions dry;
  MirostatOptions mirostat;
  AdaptiveOptions adaptive;
  /// Applied in this order; those that are missing are off.
  std::vector<Sampler> samplers = {Sampler::kPenalties, Sampler::kDry,      Sampler::kTopNSigma,
                                   Sampler::kTopK,      Sampler::kTypicalP, Sampler::kTopP,
                                   Sampler::kMinP,      Sampler::kXtc,      Sampler::kTemperature};
  std::uint64_t seed = 0;
  int stream = 0;  ///< of random numbers: sequences with the same one and the same seed draw alike
};

/// None of the tokens is ever chosen.
void forbid(SamplingOptions& options, std::span<const Token> tokens);

/// What samplers have learnt from the tokens that they chose.
struct SamplerState {
  explicit SamplerState(const SamplingOptions& options);
  double mirostat_mu;  ///< the greatest surprise that is allowed, in bits
  // Of the tokens' probabilities, sums that forget.
  double adaptive_sum;
  double adaptive_weight;
};

/// How many of a row's best tokens decide what is sampled: 1 where it is greedy, else top-k, and as
/// many more as biases and penalties can put after others. 0: all logits are needed.
int tokens_to_sample_from(const SamplingOptions& options);

/// The token at `position` (that of the new token) from the logits of the row before it. `history`
/// is the sequence's tokens up to there, `state` what came of them. The random number is a function
/// of seed, stream and position alone, so that text with drafts equals text without.
Token sample_token(std::span<const float> logits, std::span<const Token> history, int position,
                   const SamplingOptions& options, SamplerState& state);

/// The same from the row's tokens_to_sample_from() best tokens, in Engine::best_tokens' order.
Token sample_token(std::span<const TokenLogit> best, std::span<const Token> history, int position,
                   const SamplingOptions& options, SamplerState& state);

struct TokenShare {
  Token token;
  double probability;
};
/// What sample_token draws from, likeliest first.
std::vector<TokenShare> distribution(std::span<const float> logits, std::span<const Token> history,
                                     int position, const SamplingOptions& options,
                                     const SamplerState& state);

}  // namespace firp
