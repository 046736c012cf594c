#include "decode/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "model/test_files.h"

namespace firp {
namespace {

using testing::HasSubstr;

const std::vector<float> kLogits = {1.0f, 3.0f, 2.0f, 3.0f, -1.0f, 0.0f};

/// How often each token comes, over many positions.
std::map<Token, int> histogram(const SamplingOptions& options, int draws,
                               std::span<const Token> history = {}) {
  std::map<Token, int> counts;
  for (int position = 0; position < draws; ++position) {
    ++counts[sample_token(kLogits, history, position, options)];
  }
  return counts;
}

SamplingOptions plain_sampling() { return {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0}; }

TEST(Sampler, GreedyTakesTheFirstMaximum) { EXPECT_EQ(sample_token(kLogits, {}, 0, {}), 1); }

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
  EXPECT_EQ(sample_token(kLogits, history, 0, options), 2);
  options.repeat_last_n = 2;
  EXPECT_EQ(sample_token(kLogits, history, 0, options), 3);
  const std::vector<float> negative = {-1.0f, -1.5f};
  EXPECT_EQ(sample_token(negative, std::vector<Token>{0}, 0, options), 1);
}

TEST(Sampler, RepetitionPenaltyOfMinusOneHitsTheWholeContext) {
  SamplingOptions options;
  options.repeat_penalty = 2.0f;
  options.repeat_last_n = -1;
  EXPECT_EQ(tokens_to_sample_from(options), 0);
  std::vector<Token> history(1000, 5);
  history[0] = 3;
  history[1] = 1;
  EXPECT_EQ(sample_token(kLogits, history, 0, options), 2);
  options.repeat_last_n = 0;
  EXPECT_EQ(tokens_to_sample_from(options), 1);
  EXPECT_EQ(sample_token(kLogits, history, 0, options), 1);
}

TEST(Sampler, PresenceCountsOnceAndFrequencyEachTime) {
  const std::vector<float> logits = {5.0f, 4.0f, 3.5f};
  const std::vector<Token> history = {0, 0, 0, 1};
  SamplingOptions options;
  options.presence_penalty = 1.2f;
  EXPECT_EQ(sample_token(logits, history, 0, options), 0);  // 3.8, 2.8, 3.5
  options.presence_penalty = 0;
  options.frequency_penalty = 0.45f;
  EXPECT_EQ(sample_token(logits, history, 0, options), 0);  // 3.65, 3.55, 3.5
  options.frequency_penalty = 0.51f;
  EXPECT_EQ(sample_token(logits, history, 0, options), 2);  // 3.47, 3.49, 3.5
  options.repeat_last_n = 1;
  EXPECT_EQ(sample_token(logits, history, 0, options), 0);
  options.repeat_last_n = 0;
  options.frequency_penalty = 100;
  EXPECT_EQ(sample_token(logits, history, 0, options), 0);
}

TEST(Sampler, BiasesAreAddedAndInfinityForbids) {
  SamplingOptions options;
  options.logit_bias = {{4, 4.5f}};
  EXPECT_EQ(sample_token(kLogits, {}, 0, options), 4);
  options.logit_bias = {{1, -std::numeric_limits<float>::infinity()}};
  EXPECT_EQ(sample_token(kLogits, {}, 0, options), 3);
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
    ++counts[sample_token(logits, {}, position, options)];
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
  EXPECT_EQ(sample_token(kLogits, {}, 0, options), 2);
}

TEST(Sampler, TheDynamicTemperatureFollowsHowEvenTheTokensAre) {
  SamplingOptions options = plain_sampling();
  options.dynatemp_range = 1;  // between 0 and 2
  const std::vector<float> sure = {20, 0, 0, 0}, even = {1, 1, 1, 1.5f};
  int others = 0, firsts = 0;
  for (int position = 0; position < 2000; ++position) {
    others += sample_token(sure, {}, position, options) != 0;
    firsts += sample_token(even, {}, position, options) == 3;
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
  std::vector<TokenLogit> best;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    best.push_back({static_cast<Token>(i), logits[i]});
  }
  std::ranges::stable_sort(best, std::greater{}, &TokenLogit::logit);
  best.resize(40);
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = 1, .typical_p = 0.8f},
        SamplingOptions{.temperature = 1, .xtc_probability = 0.5f},
        SamplingOptions{.temperature = 0, .xtc_probability = 0.5f},
        SamplingOptions{.temperature = 0.7f, .dynatemp_range = 0.5f, .dynatemp_exponent = 2}}) {
    EXPECT_EQ(tokens_to_sample_from(options), 40);
    for (int position = 0; position < 200; ++position) {
      ASSERT_EQ(sample_token(logits, {}, position, options), sample_token(best, position, options));
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
  std::vector<TokenLogit> all;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    all.push_back({static_cast<Token>(i), logits[i]});
  }
  std::ranges::stable_sort(all, std::greater{}, &TokenLogit::logit);
  return sample_token(all, position, options);
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
            ASSERT_EQ(sample_token(logits, {}, position, options),
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
                          sample_token(logits, {}, 0,
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
  EXPECT_THROW(sample_token(std::span<const TokenLogit>(), 0, {}), Error);
}

TEST(Sampler, WhatIsNoNumberIsNeverChosen) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits = {kNan, 1, kNan, 3, kNan};
  EXPECT_EQ(sample_token(logits, {}, 0, {}), 3);
  for (const int top_k : {0, 4}) {
    for (int position = 0; position < 200; ++position) {
      const SamplingOptions options = {
          .temperature = 2, .top_k = top_k, .top_p = 1.0f, .min_p = 0.0f};
      EXPECT_EQ(sample_token(logits, {}, position, options) % 2, 1);
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
    const Token token = sample_token(kLogits, {}, position, options);
    EXPECT_EQ(token, sample_token(kLogits, std::vector<Token>{1, 2}, position, options));
    by_seed += token != sample_token(kLogits, {}, position, other_seed);
    by_stream += token != sample_token(kLogits, {}, position, other_stream);
  }
  EXPECT_GT(by_seed, 100);
  EXPECT_GT(by_stream, 100);
}

}  // namespace
}  // namespace firp
