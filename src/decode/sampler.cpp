#include "decode/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

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
  return options.repeat_last_n != 0 &&
         (options.repeat_penalty != 1.0f || options.frequency_penalty != 0 ||
          options.presence_penalty != 0);
}

bool crosses_out(const SamplingOptions& options) {
  return options.xtc_probability > 0 && options.xtc_threshold <= 0.5f;
}

bool is_greedy(const SamplingOptions& options) {
  return options.temperature <= 0 && !crosses_out(options);
}

/// Before any token is left out.
bool changes_logits(const SamplingOptions& options) {
  return penalizes(options) || !options.logit_bias.empty() || options.top_n_sigma > 0;
}

bool has_own_temperature(const SamplingOptions& options) {
  return options.temperature > 0 && options.dynatemp_range > 0;
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

/// Of tokens, likeliest first.
std::vector<double> probabilities(std::span<const TokenLogit> tokens) {
  std::vector<double> shares;
  double total = 0;
  for (const TokenLogit& token : tokens) {
    shares.push_back(weight(token.logit, tokens.front().logit, 1.0));
    total += shares.back();
  }
  for (double& share : shares) share /= total;
  return shares;
}

double entropy_of(std::span<const double> shares) {
  double entropy = 0;
  for (const double share : shares) {
    if (share > 0) entropy -= share * std::log(share);
  }
  return entropy;
}

/// Locally typical sampling (arXiv 2202.00666): the tokens whose information is nearest to what is
/// to be expected, until they sum to typical_p.
std::vector<TokenLogit> typical(std::span<const TokenLogit> tokens, float typical_p) {
  const std::vector<double> shares = probabilities(tokens);
  const double entropy = entropy_of(shares);
  std::vector<std::size_t> order(tokens.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {},
                           [&](std::size_t i) { return std::abs(-std::log(shares[i]) - entropy); });
  std::vector<TokenLogit> kept;
  double sum = 0;
  for (std::size_t i = 0; i < order.size() && !(sum > typical_p); ++i) {
    kept.push_back(tokens[order[i]]);
    sum += shares[order[i]];
  }
  std::ranges::sort(kept, likelier);
  return kept;
}

/// Of tokens, likeliest first, those without all that are above the threshold but the last of them
/// ("exclude top choices").
std::span<const TokenLogit> crossed_out(std::span<const TokenLogit> tokens, int position,
                                        const SamplingOptions& options) {
  // Another number than the draw's: of a stream that no sequence has.
  constexpr int kStreams = 1 << 30;
  const double chance = uniform(options.seed, options.stream + kStreams, position);
  if (chance > options.xtc_probability) return tokens;
  const std::vector<double> shares = probabilities(tokens);
  const auto above =
      std::ranges::count_if(shares, [&](double share) { return share >= options.xtc_threshold; });
  return above < 2 ? tokens : tokens.subspan(above - 1);
}

/// By how even the tokens' probabilities are.
double temperature_of(std::span<const TokenLogit> tokens, const SamplingOptions& options) {
  if (!has_own_temperature(options) || tokens.size() < 2) return options.temperature;
  const double least = std::max(0.0f, options.temperature - options.dynatemp_range);
  const double most = options.temperature + options.dynatemp_range;
  const double evenness = entropy_of(probabilities(tokens)) / std::log(tokens.size());
  return least + (most - least) * std::pow(evenness, options.dynatemp_exponent);
}

/// Of tokens that are all kept, likeliest first.
Token draw(std::span<const TokenLogit> kept, int position, const SamplingOptions& options) {
  const double temperature = temperature_of(kept, options);
  if (temperature <= 0) return kept.front().token;
  std::vector<double> weights(kept.size());
  double total = 0;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    weights[i] = weight(kept[i].logit, kept.front().logit, temperature);
    total += weights[i];
  }
  double rest = uniform(options.seed, options.stream, position);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    rest -= weights[i] / total;
    if (rest < 0) return kept[i].token;
  }
  return kept.back().token;
}

/// The logits with all that changes them before any token is left out.
void change(std::span<float> logits, std::span<const Token> history,
            const SamplingOptions& options) {
  for (const TokenLogit& bias : options.logit_bias) logits[bias.token] += bias.logit;
  if (penalizes(options)) {
    const std::size_t last = options.repeat_last_n < 0
                                 ? history.size()
                                 : std::min<std::size_t>(history.size(), options.repeat_last_n);
    std::unordered_map<Token, int> counts;
    for (const Token token : history.last(last)) ++counts[token];
    for (const auto& [token, count] : counts) {
      float& logit = logits[token];
      logit = logit > 0 ? logit / options.repeat_penalty : logit * options.repeat_penalty;
      logit -= static_cast<float>(count) * options.frequency_penalty + options.presence_penalty;
    }
  }
  if (options.top_n_sigma <= 0) return;
  double sum = 0, squares = 0;
  std::size_t numbers = 0;
  for (const float logit : logits) {
    if (std::isinf(logit)) continue;
    sum += logit;
    ++numbers;
  }
  const double mean = sum / static_cast<double>(numbers);
  for (const float logit : logits) {
    if (!std::isinf(logit)) squares += (logit - mean) * (logit - mean);
  }
  const double deviation = std::sqrt(squares / static_cast<double>(numbers));
  const double least = std::ranges::max(logits) - options.top_n_sigma * deviation;
  for (float& logit : logits) {
    if (logit < least) logit = -std::numeric_limits<float>::infinity();
  }
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

void forbid(SamplingOptions& options, std::span<const Token> tokens) {
  for (const Token token : tokens) {
    options.logit_bias.push_back({token, -std::numeric_limits<float>::infinity()});
  }
}

int tokens_to_sample_from(const SamplingOptions& options) {
  if (changes_logits(options)) return 0;
  return is_greedy(options) ? 1 : std::max(options.top_k, 0);
}

Token sample_token(std::span<const float> logits, std::span<const Token> history, int position,
                   const SamplingOptions& options) {
  const auto is_nan = [](float logit) { return std::isnan(logit); };
  const bool damaged = std::ranges::any_of(logits, is_nan);
  std::vector<float> changed;
  if (damaged || changes_logits(options)) {
    changed.assign(logits.begin(), logits.end());
    // What is no number is never chosen.
    std::ranges::replace_if(changed, is_nan, -std::numeric_limits<float>::infinity());
    if (!std::isfinite(std::ranges::max(changed))) refuse_logits();
    change(changed, history, options);
    logits = changed;
  }
  if (!std::isfinite(std::ranges::max(logits))) refuse_logits();
  if (is_greedy(options))
    return static_cast<Token>(std::ranges::max_element(logits) - logits.begin());

  const bool ranks = options.typical_p < 1 || crosses_out(options) || has_own_temperature(options);
  if (options.top_k <= 0 && !ranks) return draw_from_all(logits, position, options);

  std::vector<TokenLogit> best(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) best[i] = {static_cast<Token>(i), logits[i]};
  const std::size_t keep =
      options.top_k <= 0 ? best.size() : std::min<std::size_t>(options.top_k, best.size());
  std::partial_sort(best.begin(), best.begin() + keep, best.end(), likelier);
  return sample_token(std::span(best).first(keep), position, options);
}

Token sample_token(std::span<const TokenLogit> best, int position, const SamplingOptions& options) {
  if (best.empty() || !std::isfinite(best.front().logit)) refuse_logits();
  if (is_greedy(options)) return best.front().token;
  while (std::isinf(best.back().logit)) best = best.first(best.size() - 1);  // never chosen
  std::vector<TokenLogit> kept_as_typical;
  if (options.typical_p < 1) {
    kept_as_typical = typical(best, options.typical_p);
    best = kept_as_typical;
  }
  const float greatest = best.front().logit;
  if (options.top_p < 1.0f) {
    const std::vector<double> shares = probabilities(best);
    double sum = 0;
    std::size_t kept = 0;
    while (kept < best.size() && (kept == 0 || sum < options.top_p)) sum += shares[kept++];
    best = best.first(kept);
  }
  if (options.min_p > 0.0f) {
    const float least = greatest + std::log(options.min_p);
    std::size_t kept = 1;
    while (kept < best.size() && best[kept].logit >= least) ++kept;
    best = best.first(kept);
  }
  if (crosses_out(options)) best = crossed_out(best, position, options);
  return draw(best, position, options);
}

}  // namespace firp
