#include "decode/sampler.h"

#include <algorithm>
#include <cmath>

namespace firp {
namespace {

/// Uniform in [0, 1): a hash of its arguments (the finaliser of SplitMix64 after each of them).
double uniform(std::uint64_t seed, int sequence, int position) {
  std::uint64_t x = seed;
  for (const std::uint64_t part :
       {static_cast<std::uint64_t>(sequence), static_cast<std::uint64_t>(position)}) {
    x += 0x9E3779B97F4A7C15u * (part + 1);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
  }
  return static_cast<double>(x >> 11) * 0x1.0p-53;
}

bool likelier(const TokenLogit& a, const TokenLogit& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

}  // namespace

int tokens_to_sample_from(const SamplingOptions& options) {
  if (options.repeat_penalty != 1.0f && options.repeat_last_n > 0) return 0;
  return options.temperature <= 0 ? 1 : std::max(options.top_k, 0);
}

Token sample_token(std::span<const float> logits, std::span<const Token> history, int sequence,
                   int position, const SamplingOptions& options) {
  std::vector<float> penalized;
  if (options.repeat_penalty != 1.0f && options.repeat_last_n > 0) {
    penalized.assign(logits.begin(), logits.end());
    const std::size_t last = std::min<std::size_t>(history.size(), options.repeat_last_n);
    for (const Token token : history.last(last)) {
      const float logit = logits[token];
      penalized[token] =
          logit > 0 ? logit / options.repeat_penalty : logit * options.repeat_penalty;
    }
    logits = penalized;
  }
  if (options.temperature <= 0) {
    return static_cast<Token>(std::ranges::max_element(logits) - logits.begin());
  }

  std::vector<TokenLogit> best(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) best[i] = {static_cast<Token>(i), logits[i]};
  const std::size_t keep =
      options.top_k > 0 ? std::min<std::size_t>(options.top_k, best.size()) : best.size();
  std::partial_sort(best.begin(), best.begin() + keep, best.end(), likelier);
  return sample_token(std::span(best).first(keep), sequence, position, options);
}

Token sample_token(std::span<const TokenLogit> best, int sequence, int position,
                   const SamplingOptions& options) {
  if (best.empty()) return 0;  // a broken model's row: no logit is a number
  if (options.temperature <= 0) return best.front().token;
  std::size_t count = best.size();
  const auto softmax = [&](double temperature) {
    std::vector<double> weights(count);
    double sum = 0;
    for (std::size_t i = 0; i < count; ++i) {
      weights[i] = std::exp((double(best[i].logit) - best.front().logit) / temperature);
      sum += weights[i];
    }
    for (double& weight : weights) weight /= sum;
    return weights;
  };

  if (options.top_p < 1.0f) {
    const std::vector<double> probabilities = softmax(1.0);
    double sum = 0;
    std::size_t kept = 0;
    while (kept < count && (kept == 0 || sum < options.top_p)) sum += probabilities[kept++];
    count = kept;
  }
  if (options.min_p > 0.0f) {
    const float least = best.front().logit + std::log(options.min_p);
    std::size_t kept = 1;
    while (kept < count && best[kept].logit >= least) ++kept;
    count = kept;
  }

  const std::vector<double> probabilities = softmax(options.temperature);
  double rest = uniform(options.seed, sequence, position);
  for (std::size_t i = 0; i < count; ++i) {
    rest -= probabilities[i];
    if (rest < 0) return best[i].token;
  }
  return best[count - 1].token;
}

}  // namespace firp
