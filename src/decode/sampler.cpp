#include "decode/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace firp {
namespace {

/// Uniform in [0, 1): a hash of its arguments (the finaliser of SplitMix64 after each of them).
double uniform(std::uint64_t seed, int stream, int position) {
  std::uint64_t x = seed;
  for (const std::uint64_t part :
       {static_cast<std::uint64_t>(stream), static_cast<std::uint64_t>(position)}) {
    x += 0x9E3779B97F4A7C15u * (part + 1);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    x ^= x >> 31;
  }
  return static_cast<double>(x >> 11) * 0x1.0p-53;
}

bool penalizes(const SamplingOptions& options) {
  return options.repeat_penalty != 1.0f && options.repeat_last_n != 0;
}

bool likelier(const TokenLogit& a, const TokenLogit& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

double weight(float logit, float greatest, double temperature) {
  return std::exp((double(logit) - greatest) / temperature);
}

/// All tokens with logits of `least` or more, likeliest first; found and sorted no further than
/// they are asked for, which as a rule is a few of them.
class Ranking {
 public:
  Ranking(std::span<const float> logits, float greatest, float least)
      : logits_(logits), greatest_(greatest), least_(least) {}

  bool has(std::size_t rank) {
    while (rank >= ranked_.size() && !complete_) extend();
    return rank < ranked_.size();
  }
  const TokenLogit& operator[](std::size_t rank) const { return ranked_[rank]; }
  std::span<const TokenLogit> found() const { return ranked_; }

 private:
  void extend() {
    const float above = reached_;
    reached_ = std::max(greatest_ - depth_, least_);
    depth_ *= 2;
    const auto begin = static_cast<std::ptrdiff_t>(ranked_.size());
    for (std::size_t i = 0; i < logits_.size(); ++i) {
      if (logits_[i] >= reached_ && !(logits_[i] >= above)) {
        ranked_.push_back({static_cast<Token>(i), logits_[i]});
      }
    }
    std::sort(ranked_.begin() + begin, ranked_.end(), likelier);
    complete_ = !(reached_ > least_);
  }

  const std::span<const float> logits_;
  const float greatest_;
  const float least_;
  float depth_ = 4;  ///< below the greatest logit: few tokens are nearer
  /// Ranked are all logits from here on: none at first.
  float reached_ = std::numeric_limits<float>::quiet_NaN();
  bool complete_ = false;
  std::vector<TokenLogit> ranked_;
};

/// Of tokens that are all kept, likeliest first.
Token draw(std::span<const TokenLogit> kept, int position, const SamplingOptions& options) {
  std::vector<double> weights(kept.size());
  double total = 0;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    weights[i] = weight(kept[i].logit, kept.front().logit, options.temperature);
    total += weights[i];
  }
  double rest = uniform(options.seed, options.stream, position);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    rest -= weights[i] / total;
    if (rest < 0) return kept[i].token;
  }
  return kept.back().token;
}

/// With top-k off. As if all tokens were sorted, which would take longer than a small model's pass.
Token draw_from_all(std::span<const float> logits, int position, const SamplingOptions& options) {
  const float greatest = std::ranges::max(logits);
  const auto total_weight = [&](double temperature) {
    double total = 0;
    for (const float logit : logits) total += weight(logit, greatest, temperature);
    return total;
  };
  const float least = options.min_p > 0.0f ? greatest + std::log(options.min_p)
                                           : -std::numeric_limits<float>::infinity();
  Ranking ranking(logits, greatest, least);

  if (options.top_p < 1.0f) {
    const double total = total_weight(1.0);
    double sum = 0;
    std::size_t kept = 0;
    while (ranking.has(kept) && (kept == 0 || sum < options.top_p)) {
      sum += weight(ranking[kept++].logit, greatest, 1.0) / total;
    }
    return draw(ranking.found().first(kept), position, options);
  }
  if (options.min_p > 0.0f) {
    for (std::size_t rank = 0; ranking.has(rank);) rank = ranking.found().size();
    return draw(ranking.found(), position, options);
  }
  const double total = total_weight(options.temperature);
  double rest = uniform(options.seed, options.stream, position);
  for (std::size_t rank = 0; ranking.has(rank); ++rank) {
    rest -= weight(ranking[rank].logit, greatest, options.temperature) / total;
    if (rest < 0) return ranking[rank].token;
  }
  return ranking.found().back().token;
}

}  // namespace

int tokens_to_sample_from(const SamplingOptions& options) {
  if (penalizes(options)) return 0;
  return options.temperature <= 0 ? 1 : std::max(options.top_k, 0);
}

Token sample_token(std::span<const float> logits, std::span<const Token> history, int position,
                   const SamplingOptions& options) {
  const auto is_nan = [](float logit) { return std::isnan(logit); };
  const bool damaged = std::ranges::any_of(logits, is_nan);
  std::vector<float> changed;
  if (damaged) {  // what is no number is never chosen
    changed.assign(logits.begin(), logits.end());
    std::ranges::replace_if(changed, is_nan, -std::numeric_limits<float>::infinity());
    logits = changed;
  }
  if (!std::isfinite(std::ranges::max(logits))) refuse_logits();
  if (penalizes(options)) {
    if (!damaged) changed.assign(logits.begin(), logits.end());
    const std::size_t last = options.repeat_last_n < 0
                                 ? history.size()
                                 : std::min<std::size_t>(history.size(), options.repeat_last_n);
    for (const Token token : history.last(last)) {
      const float logit = logits[token];
      changed[token] = logit > 0 ? logit / options.repeat_penalty : logit * options.repeat_penalty;
    }
    logits = changed;
  }
  if (options.temperature <= 0) {
    return static_cast<Token>(std::ranges::max_element(logits) - logits.begin());
  }

  if (options.top_k <= 0) return draw_from_all(logits, position, options);

  std::vector<TokenLogit> best(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) best[i] = {static_cast<Token>(i), logits[i]};
  const std::size_t keep = std::min<std::size_t>(options.top_k, best.size());
  std::partial_sort(best.begin(), best.begin() + keep, best.end(), likelier);
  return sample_token(std::span(best).first(keep), position, options);
}

Token sample_token(std::span<const TokenLogit> best, int position, const SamplingOptions& options) {
  if (best.empty() || !std::isfinite(best.front().logit)) refuse_logits();
  if (options.temperature <= 0) return best.front().token;
  std::size_t count = best.size();
  const float greatest = best.front().logit;
  if (options.top_p < 1.0f) {
    double total = 0;
    for (const TokenLogit& token : best) total += weight(token.logit, greatest, 1.0);
    double sum = 0;
    std::size_t kept = 0;
    while (kept < count && (kept == 0 || sum < options.top_p)) {
      sum += weight(best[kept++].logit, greatest, 1.0) / total;
    }
    count = kept;
  }
  if (options.min_p > 0.0f) {
    const float least = greatest + std::log(options.min_p);
    std::size_t kept = 1;
    while (kept < count && best[kept].logit >= least) ++kept;
    count = kept;
  }

  return draw(best.first(count), position, options);
}

}  // namespace firp
