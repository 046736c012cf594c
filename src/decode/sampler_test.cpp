#include "decode/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>

#include "model/test_files.h"

namespace firp {
namespace {

using testing::HasSubstr;

const std::vector<float> kLogits = {1.0f, 3.0f, 2.0f, 3.0f, -1.0f, 0.0f};

/// With nothing learnt.
Token sampled(std::span<const float> logits, std::span<const Token> history, int position,
              const SamplingOptions& options) {
  SamplerState state(options);
  return sample_token(logits, history, position, options, state);
}
Token sampled(std::span<const TokenLogit> best, int position, const SamplingOptions& options,
              std::span<const Token> history = {}) {
  SamplerState state(options);
  return sample_token(best, history, position, options, state);
}

/// All tokens, in Engine::best_tokens' order.
std::vector<TokenLogit> ranked_tokens(std::span<const float> logits) {
  std::vector<TokenLogit> ranked;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    ranked.push_back({static_cast<Token>(i), logits[i]});
  }
  std::ranges::stable_sort(ranked, std::greater{}, &TokenLogit::logit);
  return ranked;
}

/// How often each token comes, over many positions.
std::map<Token, int> histogram(const SamplingOptions& options, int draws,
                               std::span<const Token> history = {}) {
  std::map<Token, int> counts;
  for (int position = 0; position < draws; ++position) {
    ++counts[sampled(kLogits, history, position, options)];
  }
  return counts;
}

SamplingOptions plain_sampling() { return {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0}; }

TEST(Sampler, GreedyTakesTheFirstMaximum) { EXPECT_EQ(sampled(kLogits, {}, 0, {}), 1); }

TEST(Sampler, FollowsTheModelsDistribution) {
  for (const float temperature : {0.5f, 1.0f, 2.0f}) {
    SamplingOptions options = plain_sampling();
    options.temperature = temperature;
    constexpr int kDraws = 40000;
    const std::map<Token, int> counts = histogram(options, kDraws);
    double sum = 0;
    for (const float logit : kLogits) sum += std::exp(logit / temperature);
    for (std::size_t i = 0; i < kLogits.size(); ++i) {
      const double p = std::exp(kLogits[i] / temperature) / sum;
      const auto found = counts.find(static_cast<Token>(i));
      const double seen = found == counts.end() ? 0 : double(found->second) / kDraws;
      EXPECT_NEAR(seen, p, 5 * std::sqrt(p * (1 - p) / kDraws) + 1e-4);
    }
  }
}

TEST(Sampler, FiltersKeepWhatTheirNamesSay) {
  SamplingOptions options = plain_sampling();
  options.top_k = 3;
  EXPECT_EQ(histogram(options, 2000).size(), 3u);
  options = plain_sampling();
  options.top_k = 1;
  EXPECT_EQ(histogram(options, 100).size(), 1u);
  options = plain_sampling();
  options.top_p = 0.7f;  // the two threes hold 0.37 each
  EXPECT_EQ(histogram(options, 2000).size(), 2u);
  options = plain_sampling();
  options.min_p = 0.2f;  // e^-1 = 0.37 stays, e^-2 = 0.14 goes
  EXPECT_EQ(histogram(options, 2000).size(), 3u);
}

TEST(Sampler, RepetitionPenaltyHitsRecentTokensOnly) {
  SamplingOptions options;
  options.repeat_penalty = 2.0f;
  const std::vector<Token> history = {3, 1, 5};
  EXPECT_EQ(sampled(kLogits, history, 0, options), 2);
  options.repeat_last_n = 2;
  EXPECT_EQ(sampled(kLogits, history, 0, options), 3);
  const std::vector<float> negative = {-1.0f, -1.5f};
  EXPECT_EQ(sampled(negative, std::vector<Token>{0}, 0, options), 1);
}

TEST(Sampler, RepetitionPenaltyOfMinusOneHitsTheWholeContext) {
  SamplingOptions options;
  options.repeat_penalty = 2.0f;
  options.repeat_last_n = -1;
  EXPECT_EQ(tokens_to_sample_from(options), 0);
  std::vector<Token> history(1000, 5);
  history[0] = 3;
  history[1] = 1;
  EXPECT_EQ(sampled(kLogits, history, 0, options), 2);
  options.repeat_last_n = 0;
  EXPECT_EQ(tokens_to_sample_from(options), 1);
  EXPECT_EQ(sampled(kLogits, history, 0, options), 1);
}

TEST(Sampler, PresenceCountsOnceAndFrequencyEachTime) {
  const std::vector<float> logits = {5.0f, 4.0f, 3.5f};
  const std::vector<Token> history = {0, 0, 0, 1};
  SamplingOptions options;
  options.presence_penalty = 1.2f;
  EXPECT_EQ(sampled(logits, history, 0, options), 0);  // 3.8, 2.8, 3.5
  options.presence_penalty = 0;
  options.frequency_penalty = 0.45f;
  EXPECT_EQ(sampled(logits, history, 0, options), 0);  // 3.65, 3.55, 3.5
  options.frequency_penalty = 0.51f;
  EXPECT_EQ(sampled(logits, history, 0, options), 2);  // 3.47, 3.49, 3.5
  options.repeat_last_n = 1;
  EXPECT_EQ(sampled(logits, history, 0, options), 0);
  options.repeat_last_n = 0;
  options.frequency_penalty = 100;
  EXPECT_EQ(sampled(logits, history, 0, options), 0);
}

TEST(Sampler, BiasesAreAddedAndInfinityForbids) {
  SamplingOptions options;
  options.logit_bias = {{4, 4.5f}};
  EXPECT_EQ(sampled(kLogits, {}, 0, options), 4);
  options.logit_bias = {{1, -std::numeric_limits<float>::infinity()}};
  EXPECT_EQ(sampled(kLogits, {}, 0, options), 3);
  SamplingOptions drawn = plain_sampling();
  drawn.temperature = 5;
  drawn.logit_bias = {{1, -std::numeric_limits<float>::infinity()}, {2, -1e9f}};
  for (const int top_k : {0, 4}) {
    drawn.top_k = top_k;
    const std::map<Token, int> counts = histogram(drawn, 2000);
    EXPECT_EQ(counts.count(1), 0u);
    EXPECT_EQ(counts.count(2), 0u);
    EXPECT_GT(counts.at(3), 0);
  }
}

TEST(Sampler, TopNSigmaKeepsWhatIsNearTheGreatest) {
  SamplingOptions options = plain_sampling();
  options.temperature = 10;
  options.top_n_sigma = 1;  // the deviation of kLogits is 1.49
  EXPECT_EQ(histogram(options, 4000).size(), 3u);
  options.top_n_sigma = 2;
  EXPECT_EQ(histogram(options, 4000).size(), 4u);
  options.top_n_sigma = 3;
  EXPECT_EQ(histogram(options, 4000).size(), 6u);
}

TEST(Sampler, TypicalTokensAreThoseOfExpectedSurprise) {
  // Probabilities of 0.4, 0.2, 0.2, 0.2: an entropy of 1.33, nearer to the three's 1.61 than to the
  // first one's 0.92.
  const std::vector<float> logits = {std::log(0.4f), std::log(0.2f), std::log(0.2f),
                                     std::log(0.2f)};
  SamplingOptions options = plain_sampling();
  options.typical_p = 0.5f;
  std::map<Token, int> counts;
  for (int position = 0; position < 2000; ++position) {
    ++counts[sampled(logits, {}, position, options)];
  }
  EXPECT_EQ(counts.count(0), 0u);
  EXPECT_EQ(counts.size(), 3u);
}

TEST(Sampler, XtcLeavesOutAllLikelyTokensButOneNowAndThen) {
  SamplingOptions options = plain_sampling();
  options.xtc_threshold = 0.1f;  // the threes have 0.37 each, the two 0.14
  options.xtc_probability = 1;
  const std::map<Token, int> always = histogram(options, 2000);
  EXPECT_EQ(always.count(1) + always.count(3), 0u);
  EXPECT_GT(always.at(2), 1000);
  options.xtc_probability = 0.5f;
  const double share = histogram(options, 4000)[1] / 4000.0;
  EXPECT_NEAR(share, 0.5 * 0.37, 0.04);
  options.xtc_threshold = 0.3f;  // the threes alone: one of them stays
  options.xtc_probability = 1;
  EXPECT_EQ(histogram(options, 2000).count(1), 0u);
  EXPECT_GT(histogram(options, 2000).at(3), 0);
  options.xtc_threshold = 0.6f;
  EXPECT_EQ(histogram(options, 2000), histogram(plain_sampling(), 2000));
  // A greedy answer loses its best tokens, too.
  options.xtc_threshold = 0.1f;
  options.temperature = 0;
  EXPECT_EQ(tokens_to_sample_from(options), 0);
  EXPECT_EQ(sampled(kLogits, {}, 0, options), 2);
}

TEST(Sampler, TheDynamicTemperatureFollowsHowEvenTheTokensAre) {
  SamplingOptions options = plain_sampling();
  options.dynatemp_range = 1;  // between 0 and 2
  const std::vector<float> sure = {20, 0, 0, 0}, even = {1, 1, 1, 1.5f};
  int others = 0, firsts = 0;
  for (int position = 0; position < 2000; ++position) {
    others += sampled(sure, {}, position, options) != 0;
    firsts += sampled(even, {}, position, options) == 3;
  }
  EXPECT_EQ(others, 0);
  const double hot = std::exp(0.25) / (3 + std::exp(0.25));  // at a temperature of nearly 2
  EXPECT_NEAR(firsts / 2000.0, hot, 0.04);
}

/// What a sampler leaves out does not depend on whether it saw all logits or the best alone.
TEST(Sampler, TheBestTokensAndAllLogitsGiveTheSame) {
  std::mt19937 generator(3);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(500);
  for (float& logit : logits) logit = normal(generator);
  std::vector<TokenLogit> best = ranked_tokens(logits);
  best.resize(40);
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = 1, .typical_p = 0.8f},
        SamplingOptions{.temperature = 1, .xtc_probability = 0.5f},
        SamplingOptions{.temperature = 0, .xtc_probability = 0.5f},
        SamplingOptions{.temperature = 0.7f, .dynatemp_range = 0.5f, .dynatemp_exponent = 2},
        SamplingOptions{.temperature = 1, .min_p = 0.3f, .min_keep = 7},
        SamplingOptions{.temperature = 2,
        .samplers = {Sampler::kTemperature, Sampler::kMinP, Sampler::kTopK}},
        SamplingOptions{.temperature = 1,
        .adaptive = {.target = 0.3f},
        .samplers = {Sampler::kTopK, Sampler::kAdaptiveP}}}) {
    EXPECT_EQ(tokens_to_sample_from(options), 40);
    for (int position = 0; position < 200; ++position) {
      ASSERT_EQ(sampled(logits, {}, position, options), sampled(best, position, options));
    }
  }
}

/// Nor do biases and penalties that put tokens after others.
TEST(Sampler, TheBestTokensAreEnoughWhereOthersAreLowered) {
  std::mt19937 generator(5);
  std::normal_distribution<float> normal(0, 3);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> logits(400);
    for (float& logit : logits) logit = normal(generator);
    const std::vector<TokenLogit> ranked = ranked_tokens(logits);
    std::vector<Token> history;
    SamplingOptions options = {
        .temperature = trial % 3 == 0 ? 0.0f : 0.8f, .top_k = 5, .seed = 7u + trial};
    options.repeat_last_n = 12;
    if (trial % 2 == 0) options.repeat_penalty = 1.8f;
    if (trial % 4 < 2) options.frequency_penalty = 2;
    if (trial % 5 == 0) options.presence_penalty = 4;
    // Mostly of the likeliest tokens, so that they matter.
    for (int i = 0; i < 30; ++i) history.push_back(ranked[generator() % 25].token);
    if (trial % 3 > 0) forbid(options, std::vector{ranked[0].token, ranked[2].token});
    if (trial % 7 == 0) options.logit_bias.push_back({ranked[1].token, -2.5f});
    const int enough = tokens_to_sample_from(options);
    ASSERT_GT(enough, 0);
    ASSERT_LE(enough, 5 + 12 + 3);
    const std::span<const TokenLogit> best = std::span(ranked).first(enough);
    for (int position = 0; position < 20; ++position) {
      ASSERT_EQ(sampled(logits, history, position, options),
                sampled(best, position, options, history))
          << trial;
    }
  }
}

TEST(Sampler, ANegativeTopKIsAllTokensAndANegativeTemperatureGreedy) {
  SamplingOptions options = plain_sampling();
  SamplingOptions negative = options;
  negative.top_k = -1;
  EXPECT_EQ(tokens_to_sample_from(negative), 0);
  EXPECT_EQ(histogram(negative, 2000), histogram(options, 2000));
  negative.temperature = -1;
  EXPECT_EQ(tokens_to_sample_from(negative), 1);
  EXPECT_EQ(histogram(negative, 100), (std::map<Token, int>{{1, 100}}));
}

/// Sorts all tokens and lets the other sample_token choose.
Token sample_of_sorted(std::span<const float> logits, int position,
                       const SamplingOptions& options) {
  return sampled(ranked_tokens(logits), position, options);
}

TEST(Sampler, WithoutTopKTheTokenIsThatOfAllTokensSorted) {
  std::mt19937 generator(1);
  for (const float deviation : {0.0f, 0.1f, 3.0f, 30.0f, 1e6f}) {
    std::normal_distribution<float> normal(5, deviation);
    std::vector<float> logits(3000);
    for (float& logit : logits) logit = deviation == 0 ? 1.0f : normal(generator);
    logits[7] = logits[2000];  // equals, in order of tokens
    logits[100] = -std::numeric_limits<float>::infinity();
    for (const float temperature : {0.3f, 1.0f, 5.0f}) {
      for (const float top_p : {0.5f, 0.95f, 1.0f}) {
        for (const float min_p : {0.0f, 0.05f, 1.0f}) {
          const SamplingOptions options = {
              .temperature = temperature, .top_k = 0, .top_p = top_p, .min_p = min_p};
          for (int position = 0; position < 20; ++position) {
            ASSERT_EQ(sampled(logits, {}, position, options),
                      sample_of_sorted(logits, position, options))
                << deviation << " " << temperature << " " << top_p << " " << min_p;
          }
        }
      }
    }
  }
}

TEST(Sampler, ARowWithoutNumbersIsAnErrorThatNamesTheFile) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
    for (const float top_p : {0.5f, 1.0f}) {
      for (const float min_p : {0.0f, 0.1f}) {
        for (const int top_k : {0, 3}) {
          for (const float temperature : {0.0f, 1.0f}) {
            const std::vector<float> logits(5, bad);
            EXPECT_THAT(error_of([&] {
                          sampled(logits, {}, 0,
                                  {.temperature = temperature,
                                   .top_k = top_k,
                                   .top_p = top_p,
                                   .min_p = min_p,
                                   .repeat_penalty = 1.1f});
                        }),
                        HasSubstr("its file is damaged"));
          }
        }
      }
    }
  }
  EXPECT_THROW(sampled(std::span<const TokenLogit>(), 0, {}), Error);
}

TEST(Sampler, WhatIsNoNumberIsNeverChosen) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits = {kNan, 1, kNan, 3, kNan};
  EXPECT_EQ(sampled(logits, {}, 0, {}), 3);
  for (const int top_k : {0, 4}) {
    for (int position = 0; position < 200; ++position) {
      const SamplingOptions options = {
          .temperature = 2, .top_k = top_k, .top_p = 1.0f, .min_p = 0.0f};
      EXPECT_EQ(sampled(logits, {}, position, options) % 2, 1);
    }
  }
}

TEST(Sampler, TheDrawDependsOnSeedStreamAndPositionAlone) {
  const SamplingOptions options = plain_sampling();
  SamplingOptions other_seed = options;
  other_seed.seed = 1;
  SamplingOptions other_stream = options;
  other_stream.stream = 1;
  int by_seed = 0, by_stream = 0;
  for (int position = 0; position < 500; ++position) {
    const Token token = sampled(kLogits, {}, position, options);
    EXPECT_EQ(token, sampled(kLogits, std::vector<Token>{1, 2}, position, options));
    by_seed += token != sampled(kLogits, {}, position, other_seed);
    by_stream += token != sampled(kLogits, {}, position, other_stream);
  }
  EXPECT_GT(by_seed, 100);
  EXPECT_GT(by_stream, 100);
}

std::vector<float> random_logits(std::mt19937& random, int vocabulary, float deviation) {
  std::normal_distribution<float> normal(0, deviation);
  std::vector<float> logits(vocabulary);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

std::map<Token, double> shares_of(std::span<const float> logits, std::span<const Token> history,
                                  const SamplingOptions& options) {
  std::map<Token, double> shares;
  const SamplerState state(options);
  for (const TokenShare& each : distribution(logits, history, 0, options, state)) {
    shares[each.token] = each.probability;
  }
  return shares;
}

/// libllama's samplers, one behind the other.
class LlamaChain {
 public:
  void add(llama_sampler* sampler) { samplers_.emplace_back(sampler, llama_sampler_free); }

  struct Result {
    std::map<Token, double> shares;
    Token selected = -1;  ///< where one of them chooses
  };
  Result apply(std::span<const float> logits, std::span<const Token> history) const {
    std::vector<llama_token_data> data;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      data.push_back({static_cast<Token>(i), logits[i], 0});
    }
    llama_token_data_array tokens = {data.data(), data.size(), -1, false};
    for (const auto& sampler : samplers_) {
      for (const Token token : history) llama_sampler_accept(sampler.get(), token);
      llama_sampler_apply(sampler.get(), &tokens);
    }
    Result result;
    if (tokens.selected >= 0) result.selected = tokens.data[tokens.selected].id;
    double total = 0;
    float greatest = -1e30f;
    for (std::size_t i = 0; i < tokens.size; ++i) {
      greatest = std::max(greatest, tokens.data[i].logit);
    }
    for (std::size_t i = 0; i < tokens.size; ++i) {
      if (std::isinf(tokens.data[i].logit)) continue;
      const double weight = std::exp(double{tokens.data[i].logit} - greatest);
      result.shares[tokens.data[i].id] = weight;
      total += weight;
    }
    for (auto& [token, share] : result.shares) share /= total;
    return result;
  }

 private:
  std::vector<std::unique_ptr<llama_sampler, void (*)(llama_sampler*)>> samplers_;
};

void expect_near(const std::map<Token, double>& ours, const std::map<Token, double>& theirs,
                 const std::string& what) {
  ASSERT_EQ(ours.size(), theirs.size()) << what;
  for (const auto& [token, share] : theirs) {
    ASSERT_TRUE(ours.contains(token)) << what;
    ASSERT_NEAR(ours.at(token), share, 1e-5) << what;
  }
}

llama_sampler* llamas(Sampler sampler, const SamplingOptions& o, int vocabulary) {
  switch (sampler) {
    case Sampler::kPenalties:
      return llama_sampler_init_penalties(vocabulary, o.repeat_last_n, o.repeat_penalty,
                                          o.frequency_penalty, o.presence_penalty);
    case Sampler::kDry:
      return llama_sampler_init_dry(nullptr, o.dry.multiplier, o.dry.base, o.dry.allowed_length,
                                    o.dry.penalty_last_n, nullptr, 0);
    case Sampler::kTopNSigma:
      return llama_sampler_init_top_n_sigma(o.top_n_sigma);
    case Sampler::kTopK:
      return llama_sampler_init_top_k(o.top_k);
    case Sampler::kTypicalP:
      return llama_sampler_init_typical(o.typical_p, o.min_keep);
    case Sampler::kTopP:
      return llama_sampler_init_top_p(o.top_p, o.min_keep);
    case Sampler::kMinP:
      return llama_sampler_init_min_p(o.min_p, o.min_keep);
    case Sampler::kXtc:
      return llama_sampler_init_xtc(o.xtc_probability, o.xtc_threshold, o.min_keep, 1);
    case Sampler::kTemperature:
      return llama_sampler_init_temp_ext(o.temperature, o.dynatemp_range, o.dynatemp_exponent);
    case Sampler::kAdaptiveP:
      return llama_sampler_init_adaptive_p(o.adaptive.target, o.adaptive.decay, 1);
  }
  return nullptr;
}

TEST(Sampler, AnyOrderLeavesWhatLibllamasLeaves) {
  constexpr int kVocabulary = 200;
  std::mt19937 random(5);
  const auto pick = [&](std::initializer_list<float> values) {
    return *(values.begin() + random() % values.size());
  };
  for (int trial = 0; trial < 3000; ++trial) {
    const std::vector<float> logits = random_logits(random, kVocabulary, pick({0.5f, 2, 4}));
    std::vector<Token> history(80);
    const int kinds = 2 + static_cast<int>(random() % 20);
    for (Token& token : history) token = static_cast<Token>(random() % kinds);
    SamplingOptions options = {.temperature = pick({0.5f, 1, 1.7f}),
                               .dynatemp_range = pick({0, 0, 0.4f}),
                               .dynatemp_exponent = pick({1, 2}),
                               .top_n_sigma = pick({-1, 1, 2.5f}),
                               .top_k = static_cast<int>(pick({0, 5, 40, 150})),
                               .typical_p = pick({1, 0.5f, 0.9f}),
                               .top_p = pick({1, 0.5f, 0.95f}),
                               .min_p = pick({0, 0.05f, 0.3f}),
                               .min_keep = static_cast<int>(pick({0, 1, 6})),
                               .xtc_probability = pick({0, 1}),
                               .xtc_threshold = pick({0.1f, 0.02f}),
                               .repeat_penalty = pick({1, 1.3f}),
                               .frequency_penalty = pick({0, 0.2f}),
                               .presence_penalty = pick({0, 0.5f}),
                               .repeat_last_n = static_cast<int>(pick({0, 10, 64})),
                               .dry = {.multiplier = pick({0, 0.8f}),
                                       .base = pick({1, 1.75f}),
                                       .allowed_length = static_cast<int>(pick({0, 1, 2})),
                                       .penalty_last_n = static_cast<int>(pick({1, 20, 64}))}};
    // What top-n-sigma leaves out libllama keeps as impossible tokens, which these count.
    if (options.top_n_sigma > 0) {
      options.typical_p = 1;
      options.dynatemp_range = 0;
      options.min_keep = 0;
    }
    std::ranges::shuffle(options.samplers, random);
    options.samplers.resize(random() % (options.samplers.size() + 1));
    if (!options.samplers.empty() && random() % 4 == 0) {
      options.samplers.push_back(options.samplers.front());
    }
    LlamaChain chain;
    std::string order;
    for (const Sampler sampler : options.samplers) {
      chain.add(llamas(sampler, options, kVocabulary));
      order += std::to_string(static_cast<int>(sampler)) + " ";
    }
    expect_near(shares_of(logits, history, options), chain.apply(logits, history).shares,
                order + "in trial " + std::to_string(trial));
    if (HasFatalFailure()) return;
  }
}

TEST(Sampler, WithoutATemperatureInTheOrderNothingIsGreedy) {
  SamplingOptions options = plain_sampling();
  options.temperature = 0;
  options.samplers = {Sampler::kTopK, Sampler::kTopP};
  EXPECT_EQ(histogram(options, 2000).size(), kLogits.size());
  options.samplers = {};
  EXPECT_EQ(histogram(options, 2000).size(), kLogits.size());
  options.samplers = {Sampler::kTopK, Sampler::kTemperature, Sampler::kXtc};
  EXPECT_EQ(tokens_to_sample_from(options), 1);
  EXPECT_EQ(histogram(options, 100).size(), 1u);
}

/// Where less likely tokens have a say before top-k comes, the best ones are not enough.
TEST(Sampler, ATopKThatComesLateNeedsAllLogits) {
  const auto enough = [](const SamplingOptions& options) { return tokens_to_sample_from(options); };
  SamplingOptions options = {.temperature = 1, .top_k = 5};
  EXPECT_EQ(enough(options), 5);
  options.samplers = {Sampler::kTemperature, Sampler::kMinP, Sampler::kTopK, Sampler::kTopP};
  EXPECT_EQ(enough(options), 5);
  options.dynatemp_range = 0.5f;
  EXPECT_EQ(enough(options), 0);
  options.dynatemp_range = 0;
  options.samplers = {Sampler::kTopP, Sampler::kTopK};
  EXPECT_EQ(enough(options), 0);
  options.samplers = {Sampler::kTopK, Sampler::kPenalties};
  EXPECT_EQ(enough(options), 5) << "no penalty is asked for";
  options.presence_penalty = 1;
  EXPECT_EQ(enough(options), 5) << "it comes too late to raise others";
  options.samplers = {Sampler::kPenalties, Sampler::kTopK};
  EXPECT_EQ(enough(options), 5 + 64);
  options.logit_bias = {{3, -1}, {4, -5}};
  EXPECT_EQ(enough(options), 5 + 64 + 2);
  options.logit_bias.push_back({5, 0.5f});
  EXPECT_EQ(enough(options), 0) << "any token may become one of the best";
  options.logit_bias.clear();
  options.presence_penalty = -1;
  EXPECT_EQ(enough(options), 0) << "likewise";
  options.presence_penalty = 0;
  options.repeat_penalty = 1.1f;
  options.repeat_last_n = 1000;
  EXPECT_EQ(enough(options), 0) << "so many that all logits are as cheap";
  options.samplers = {Sampler::kTopK};
  options.mirostat.version = 2;
  EXPECT_EQ(enough(options), 0);
}

TEST(Sampler, NamesAndLettersAreLlamaCpps) {
  const std::vector<std::string> names = {"penalties", "Top-K", "typ",  "nucleus",
                                          "minp",      "temp",  "topk", "top_n-sigma"};
  EXPECT_EQ(
      samplers_of_names(std::span(names).first(7)),
      (std::vector<Sampler>{Sampler::kPenalties, Sampler::kTopK, Sampler::kTypicalP, Sampler::kTopP,
                            Sampler::kMinP, Sampler::kTemperature, Sampler::kTopK}));
  EXPECT_THAT(error_of([&] { samplers_of_names(names); }),
              testing::AllOf(HasSubstr("'top_n-sigma'"), HasSubstr("xtc (x)")));
  EXPECT_THAT(error_of([&] { samplers_of_names(std::vector<std::string>{""}); }), HasSubstr("''"));
  EXPECT_EQ(samplers_of_letters("edskypmxt"), SamplingOptions().samplers);
  EXPECT_EQ(samplers_of_letters("a"), std::vector<Sampler>{Sampler::kAdaptiveP});
  EXPECT_THAT(error_of([&] { samplers_of_letters("ki"); }), HasSubstr("'i'"));
  EXPECT_THAT(error_of([&] { samplers_of_letters(std::string(65, 'k')); }), HasSubstr("64"));
}

TEST(Sampler, MirostatLeavesWhatLibllamasLeaves) {
  constexpr int kVocabulary = 2000;
  std::mt19937 random(6);
  for (const int version : {1, 2}) {
    std::set<std::size_t> sizes;
    for (int trial = 0; trial < 400; ++trial) {
      const std::vector<float> logits = random_logits(random, kVocabulary, 1 + trial % 4);
      SamplingOptions options = {
          .temperature = 0.8f,
          .top_k = 3,  // off
          .mirostat = {.version = version, .tau = 0.05f * static_cast<float>(random() % 120)}};
      LlamaChain chain;
      chain.add(llama_sampler_init_temp(options.temperature));
      const MirostatOptions& mirostat = options.mirostat;
      chain.add(version == 1 ? llama_sampler_init_mirostat(kVocabulary, 1, mirostat.tau, 0.1f, 100)
                             : llama_sampler_init_mirostat_v2(1, mirostat.tau, 0.1f));
      const std::map<Token, double> ours = shares_of(logits, {}, options);
      expect_near(ours, chain.apply(logits, {}).shares, "tau " + std::to_string(mirostat.tau));
      if (HasFatalFailure()) return;
      sizes.insert(ours.size());
    }
    EXPECT_GT(sizes.size(), 30u);
  }
}

TEST(Sampler, MirostatKeepsTheSurpriseNearTau) {
  std::mt19937 random(7);
  for (const int version : {1, 2}) {
    for (const float tau : {1.5f, 3.0f}) {
      const SamplingOptions options = {.temperature = 1,
                                       .mirostat = {.version = version, .tau = tau}};
      SamplerState state(options);
      EXPECT_EQ(state.mirostat_mu, 2.0 * tau);
      double sum = 0;
      constexpr int kTokens = 3000;
      for (int position = 0; position < kTokens; ++position) {
        const std::vector<float> logits = random_logits(random, 300, 3);
        const double mu = state.mirostat_mu;
        const std::vector<TokenShare> shares = distribution(logits, {}, position, options, state);
        const Token token = sample_token(logits, {}, position, options, state);
        const double surprise =
            -std::log2(std::ranges::find(shares, token, &TokenShare::token)->probability);
        ASSERT_NEAR(state.mirostat_mu, mu - options.mirostat.eta * (surprise - tau), 1e-9);
        sum += surprise;
      }
      EXPECT_NEAR(sum / kTokens, tau, 0.05);
    }
  }
}

TEST(Sampler, AdaptivePChoosesAsLibllamasDoes) {
  std::mt19937 random(8);
  for (const float target : {-1.0f, 0.05f, 0.4f, 1.0f}) {
    SamplingOptions options = {
        .temperature = 1.2f,
        .adaptive = {.target = target, .decay = 0.8f},
        .samplers = {Sampler::kTopK, Sampler::kAdaptiveP, Sampler::kTemperature}};
    LlamaChain chain;
    chain.add(llama_sampler_init_top_k(options.top_k));
    chain.add(llama_sampler_init_temp(options.temperature));
    chain.add(llamas(Sampler::kAdaptiveP, options, 300));
    SamplerState state(options);
    std::vector<Token> history;
    for (int step = 0; step < 50; ++step) {
      const std::vector<float> logits = random_logits(random, 300, 3);
      const LlamaChain::Result theirs = chain.apply(logits, history);
      std::map<Token, double> ours;
      for (const TokenShare& each : distribution(logits, {}, step, options, state)) {
        ours[each.token] = each.probability;
      }
      expect_near(ours, theirs.shares, "target " + std::to_string(target));
      if (HasFatalFailure()) return;
      // A number that draws the same token as theirs did.
      SamplerState next = state;
      for (options.seed = 0;; ++options.seed) {
        ASSERT_LT(options.seed, 1000000u);
        next = state;
        if (sample_token(logits, {}, step, options, next) == theirs.selected) break;
      }
      state = next;
      history = {theirs.selected};
    }
  }
}

/// By comparing every end of the text with every part of it.
std::map<Token, float> simple_dry(std::span<const Token> history, const DryOptions& options) {
  const auto size = static_cast<int>(history.size());
  const int window = options.penalty_last_n < 0 ? size : std::min(size, options.penalty_last_n);
  history = history.last(window);
  const auto text_of = [&](int begin, int end) {
    std::string text;
    for (int i = begin; i < end; ++i) text += (*options.texts)[history[i]];
    return text;
  };
  const auto has_breaker = [&](const std::string& text) {
    return std::ranges::any_of(options.sequence_breakers, [&](const std::string& breaker) {
      return text.find(breaker) != std::string::npos;
    });
  };
  // A breaker that ends in a token cuts it off, and all before it.
  int most = window;
  while (most > 0) {
    const int begin = window - most;
    const std::string before = text_of(0, begin);
    bool ends_inside = false;
    for (const std::string& breaker : options.sequence_breakers) {
      const std::string tail =
          before.substr(before.size() - std::min(before.size(), breaker.size() - 1));
      ends_inside =
          ends_inside || (tail + text_of(begin, window)).find(breaker) != std::string::npos;
    }
    if (!ends_inside) break;
    --most;
  }
  std::map<Token, float> penalties;
  for (int next = 1; next < window; ++next) {
    int length = 0;
    while (length < std::min(next, most) &&
           history[next - 1 - length] == history[window - 1 - length]) {
      ++length;
    }
    if (length < options.allowed_length || has_breaker((*options.texts)[history[next]])) continue;
    if (most < options.allowed_length || window <= options.allowed_length) continue;
    float& penalty = penalties[history[next]];
    penalty = std::max(
        penalty, options.multiplier *
                     static_cast<float>(std::pow(options.base, length - options.allowed_length)));
  }
  return penalties;
}

TEST(Dry, PenalizesWhatASimpleSearchFinds) {
  const auto texts = std::make_shared<const std::vector<std::string>>(
      std::vector<std::string>{"a", "b", " c", "d\n", "#", "", "##e", "e"});
  std::mt19937 random(9);
  std::size_t penalized = 0, broken = 0;
  for (int trial = 0; trial < 5000; ++trial) {
    std::vector<Token> history(random() % 60);
    const int kinds = 2 + static_cast<int>(random() % 7);
    for (Token& token : history) token = static_cast<Token>((trial + random() % kinds) % 8);
    DryOptions options = {.multiplier = 0.7f,
                          .allowed_length = static_cast<int>(random() % 4),
                          .penalty_last_n = static_cast<int>(random() % 80) - 1,
                          .texts = texts};
    if (options.penalty_last_n == 0) continue;
    if (random() % 2 == 0) options.sequence_breakers = {"###", "ab"};
    std::map<Token, float> found;
    for (const TokenLogit& each : dry_penalties(history, options)) found[each.token] = each.logit;
    const std::map<Token, float> expected = simple_dry(history, options);
    ASSERT_EQ(found.size(), expected.size()) << trial;
    for (const auto& [token, penalty] : expected) {
      ASSERT_NEAR(found[token], penalty, 1e-3f * penalty) << trial;
    }
    penalized += found.size();
    options.texts = nullptr;
    broken += dry_penalties(history, options).size() != found.size();
  }
  EXPECT_GT(penalized, 5000u);
  EXPECT_GT(broken, 500u) << "breakers should have a say";
}

TEST(Dry, ALongRepetitionStaysANumber) {
  const std::vector<Token> history(5000, 1);
  SamplingOptions options;
  options.dry = {.multiplier = 1e30f, .base = 3, .penalty_last_n = -1};
  EXPECT_EQ(sampled(kLogits, history, 0, options), 3);
  options.dry.penalty_last_n = 0;
  EXPECT_EQ(tokens_to_sample_from(options), 1);
}

}  // namespace
}  // namespace firp
