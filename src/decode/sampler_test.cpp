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
