#include "decode/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_map>

#include "base/error.h"
#include "decode/candidates.h"
#include "model/ggml_log.h"

namespace firp {
namespace {

/// What a token is chosen by, besides the logits.
struct Place {
  std::span<const Token> history;
  int position;
  const SamplingOptions& options;
};

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

double entropy_of(std::span<const double> shares) {
  double entropy = 0;
  for (const double share : shares) {
    if (share > 0) entropy -= share * std::log(share);
  }
  return entropy;
}

std::size_t least_kept(const SamplingOptions& options) { return std::max(1, options.min_keep); }

bool penalizes(const SamplingOptions& options) {
  return options.repeat_last_n != 0 &&
         (options.repeat_penalty != 1.0f || options.frequency_penalty != 0 ||
          options.presence_penalty != 0);
}

void penalize(Candidates& candidates, const Place& place) {
  const SamplingOptions& options = place.options;
  const std::size_t all = place.history.size();
  const std::size_t last =
      options.repeat_last_n < 0 ? all : std::min<std::size_t>(all, options.repeat_last_n);
  std::unordered_map<Token, int> counts;
  for (const Token token : place.history.last(last)) ++counts[token];
  candidates.change_logits([&](const auto& find) {
    for (const auto& [token, count] : counts) {
      float* const logit = find(token);
      if (logit == nullptr) continue;
      *logit = *logit > 0 ? *logit / options.repeat_penalty : *logit * options.repeat_penalty;
      *logit -= static_cast<float>(count) * options.frequency_penalty + options.presence_penalty;
    }
  });
}

void apply_dry(Candidates& candidates, const Place& place) {
  const std::vector<TokenLogit> penalties = dry_penalties(place.history, place.options.dry);
  if (penalties.empty()) return;
  candidates.change_logits([&](const auto& find) {
    for (const TokenLogit& penalty : penalties) {
      if (float* const logit = find(penalty.token)) *logit -= penalty.logit;
    }
  });
}

void apply_top_n_sigma(Candidates& candidates, const Place& place) {
  const auto number = static_cast<double>(candidates.size());
  double sum = 0, squares = 0;
  for (const TokenLogit& each : candidates.tokens()) sum += each.logit;
  const double mean = sum / number;
  for (const TokenLogit& each : candidates.tokens()) {
    squares += (each.logit - mean) * (each.logit - mean);
  }
  const double deviation = std::sqrt(squares / number);
  candidates.keep_from(candidates.greatest_logit() - place.options.top_n_sigma * deviation);
}

void apply_top_k(Candidates& candidates, const Place& place) {
  candidates.keep(place.options.top_k);
}

/// Locally typical sampling (arXiv 2202.00666): the tokens whose information is nearest to what is
/// to be expected, until they sum to typical_p.
void apply_typical_p(Candidates& candidates, const Place& place) {
  candidates.rank_all();
  const std::vector<double> shares = candidates.probabilities();
  const double entropy = entropy_of(shares);
  std::vector<std::size_t> order(candidates.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, {},
                           [&](std::size_t i) { return std::abs(-std::log(shares[i]) - entropy); });
  std::vector<TokenLogit> kept;
  double sum = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i >= least_kept(place.options) && sum > place.options.typical_p) break;
    kept.push_back(candidates[order[i]]);
    sum += shares[order[i]];
  }
  candidates.keep_only(std::move(kept));
}

void apply_top_p(Candidates& candidates, const Place& place) {
  const double total = candidates.total_weight();
  const std::size_t least = least_kept(place.options);
  double sum = 0;
  std::size_t kept = 0;
  while (candidates.has(kept) && (kept < least || sum < place.options.top_p)) {
    sum += candidates.weight(candidates[kept++]) / total;
  }
  candidates.keep(kept);
}

void apply_min_p(Candidates& candidates, const Place& place) {
  const auto least_logit =
      static_cast<float>(candidates.greatest_logit() +
                         candidates.temperature() * double{std::log(place.options.min_p)});
  std::size_t kept = least_kept(place.options);
  while (candidates.has(kept) && candidates[kept].logit >= least_logit) ++kept;
  candidates.keep(kept);
}

bool crosses_out(const SamplingOptions& options) {
  return options.xtc_probability > 0 && options.xtc_threshold <= 0.5f;
}

/// Leaves out all tokens that are above the threshold but the last of them ("exclude top choices").
void apply_xtc(Candidates& candidates, const Place& place) {
  const SamplingOptions& options = place.options;
  // Another number than the draw's: of a stream that no sequence has.
  constexpr int kStreams = 1 << 30;
  const double chance = uniform(options.seed, options.stream + kStreams, place.position);
  if (chance > options.xtc_probability) return;
  const double total = candidates.total_weight();
  std::size_t above = 0;
  while (candidates.has(above) &&
         candidates.weight(candidates[above]) / total >= options.xtc_threshold) {
    ++above;
  }
  if (above < 2 || candidates.size() - (above - 1) < least_kept(options)) return;
  candidates.drop_likeliest(above - 1);
}

bool has_own_temperature(const SamplingOptions& options) {
  return options.mirostat.version == 0 && options.temperature > 0 && options.dynatemp_range > 0;
}

/// By how even the tokens' probabilities are, if it is dynamic.
double temperature_of(const Candidates& candidates, const SamplingOptions& options) {
  if (!has_own_temperature(options) || candidates.size() < 2) return options.temperature;
  const double least = std::max(0.0f, options.temperature - options.dynatemp_range);
  const double most = options.temperature + options.dynatemp_range;
  const double evenness = entropy_of(candidates.probabilities()) / std::log(candidates.size());
  return least + (most - least) * std::pow(evenness, options.dynatemp_exponent);
}

void apply_temperature(Candidates& candidates, const Place& place) {
  const double temperature = temperature_of(candidates, place.options);
  if (temperature <= 0) {
    candidates.keep(1);
  } else {
    candidates.multiply_temperature(temperature);
  }
}

struct Stage {
  Sampler sampler;
  char letter;
  std::string_view name;
  std::string_view other_name;
  bool (*is_on)(const SamplingOptions&);
  void (*apply)(Candidates&, const Place&);
};
constexpr Stage kStages[] = {
    {Sampler::kPenalties, 'e', "penalties", "", penalizes, penalize},
    {Sampler::kDry, 'd', "dry", "", [](const SamplingOptions& o) { return o.dry.is_on(); },
     apply_dry},
    {Sampler::kTopNSigma, 's', "top_n_sigma", "",
     [](const SamplingOptions& o) { return o.top_n_sigma > 0; }, apply_top_n_sigma},
    {Sampler::kTopK, 'k', "top_k", "", [](const SamplingOptions& o) { return o.top_k > 0; },
     apply_top_k},
    {Sampler::kTypicalP, 'y', "typ_p", "typ",
     [](const SamplingOptions& o) { return o.typical_p < 1; }, apply_typical_p},
    {Sampler::kTopP, 'p', "top_p", "nucleus", [](const SamplingOptions& o) { return o.top_p < 1; },
     apply_top_p},
    {Sampler::kMinP, 'm', "min_p", "", [](const SamplingOptions& o) { return o.min_p > 0; },
     apply_min_p},
    {Sampler::kXtc, 'x', "xtc", "", crosses_out, apply_xtc},
    {Sampler::kTemperature, 't', "temperature", "temp", [](const SamplingOptions&) { return true; },
     apply_temperature},
    // It has its say when the token is drawn.
    {Sampler::kAdaptiveP, 'a', "adaptive_p", "", [](const SamplingOptions&) { return false; },
     nullptr},
};

const Stage& stage_of(Sampler sampler) {
  return *std::ranges::find(kStages, sampler, &Stage::sampler);
}

bool changes_logits(Sampler sampler) {
  return sampler == Sampler::kPenalties || sampler == Sampler::kDry;
}

/// The stages that have a say.
std::vector<Sampler> chain_of(const SamplingOptions& options) {
  if (options.mirostat.version != 0) return {Sampler::kTemperature};
  std::vector<Sampler> chain;
  for (const Sampler sampler : options.samplers) {
    if (stage_of(sampler).is_on(options)) chain.push_back(sampler);
  }
  const auto greedy = std::ranges::find(chain, Sampler::kTemperature);
  if (greedy == chain.end() || options.temperature > 0) return chain;
  chain.erase(greedy + 1, chain.end());  // one token is left
  if (std::ranges::count(chain, Sampler::kXtc) > 0) return chain;
  // It is the likeliest, whatever is left out once no logit changes any more.
  const auto last = std::find_if(chain.rbegin(), chain.rend(), changes_logits).base();
  chain.erase(last, chain.end() - 1);
  return chain;
}

/// The token that mirostat 1 or 2 draws from the likeliest ones: how many.
std::size_t mirostat_keeps(Candidates& candidates, const MirostatOptions& options, double mu,
                           std::size_t vocabulary) {
  if (options.version == 2) {
    const double total = candidates.total_weight();
    std::size_t kept = 1;
    while (candidates.has(kept) && -std::log2(candidates.weight(candidates[kept]) / total) <= mu) {
      ++kept;
    }
    return kept;
  }
  // The exponent of Zipf's law, estimated from the likeliest tokens.
  constexpr std::size_t kLikeliest = 100;
  double products = 0, squares = 0;
  for (std::size_t i = 0; i + 1 < kLikeliest && candidates.has(i + 1); ++i) {
    const double step = std::log(double(i + 2) / double(i + 1));
    products +=
        step * (double(candidates[i].logit) - candidates[i + 1].logit) / candidates.temperature();
    squares += step * step;
  }
  const double exponent = products / squares;
  const double excess = exponent - 1;
  const double kept =
      std::pow(excess * std::exp2(mu) / (1 - std::pow(double(vocabulary), -excess)), 1 / exponent);
  if (!(kept > 1)) return 1;  // where there is but one token, too
  return static_cast<std::size_t>(std::min(kept, double(candidates.size())));
}

bool adapts(const SamplingOptions& options) {
  return options.mirostat.version == 0 && options.adaptive.target >= 0 &&
         std::ranges::count(options.samplers, Sampler::kAdaptiveP) > 0;
}

/// Of candidates their probabilities as adaptive-p has them: those near the target are the likely
/// ones, and the target is corrected by what came so far.
std::vector<double> adapted(std::span<const double> probabilities, const AdaptiveOptions& options,
                            const SamplerState& state) {
  constexpr double kWidth = 0.3, kPeak = 5, kSharpness = 10;
  const double target =
      std::clamp(2.0 * options.target - state.adaptive_sum / state.adaptive_weight, 0.0, 1.0);
  std::vector<double> weights;
  double total = 0;
  for (const double probability : probabilities) {
    const double distance = std::abs(probability - target) / kWidth;
    weights.push_back(std::exp(kPeak - kSharpness * distance * distance / (1 + distance)));
    total += weights.back();
  }
  for (double& weight : weights) weight /= total;
  return weights;
}

/// What the token is drawn from.
void leave_out(Candidates& candidates, const Place& place, const SamplerState& state,
               std::size_t vocabulary) {
  const SamplingOptions& options = place.options;
  for (const Sampler sampler : chain_of(options)) stage_of(sampler).apply(candidates, place);
  if (options.mirostat.version == 0) return;
  candidates.keep(mirostat_keeps(candidates, options.mirostat, state.mirostat_mu, vocabulary));
}

/// The rank of the candidate that the random number falls on; `share(rank)` is its probability.
template <typename Share>
std::size_t draw(Candidates& candidates, const Place& place, const Share& share) {
  double rest = uniform(place.options.seed, place.options.stream, place.position);
  for (std::size_t rank = 0; candidates.has(rank); ++rank) {
    rest -= share(rank);
    if (rest < 0) return rank;
  }
  return candidates.size() - 1;
}

Token choose(Candidates& candidates, const Place& place, SamplerState& state,
             std::size_t vocabulary) {
  const SamplingOptions& options = place.options;
  leave_out(candidates, place, state, vocabulary);
  if (adapts(options)) {
    candidates.rank_all();
    const std::vector<double> before = candidates.probabilities();
    const std::vector<double> shares = adapted(before, options.adaptive, state);
    const std::size_t rank = draw(candidates, place, [&](std::size_t i) { return shares[i]; });
    state.adaptive_sum = before[rank] + options.adaptive.decay * state.adaptive_sum;
    state.adaptive_weight = 1 + options.adaptive.decay * state.adaptive_weight;
    return candidates[rank].token;
  }
  const double total = candidates.total_weight();
  const auto share = [&](std::size_t rank) { return candidates.weight(candidates[rank]) / total; };
  const std::size_t rank = draw(candidates, place, share);
  if (options.mirostat.version != 0) {
    const double surprise = -std::log2(share(rank));
    state.mirostat_mu -= options.mirostat.eta * (surprise - options.mirostat.tau);
  }
  return candidates[rank].token;
}

/// `logits`: of all tokens, or of a row's best ones.
template <typename Logits>
Candidates candidates_of(const Logits& logits, const SamplingOptions& options) {
  Candidates candidates(logits);
  if (!options.logit_bias.empty()) {
    candidates.change_logits([&](const auto& find) {
      for (const TokenLogit& bias : options.logit_bias) {
        if (float* const logit = find(bias.token)) *logit += bias.logit;
      }
    });
  }
  return candidates;
}

/// As llama.cpp has it: "top_k" may be written "top-k", "topk" or "Top_K".
bool is_name(std::string name, const Stage& stage) {
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
  std::string dashed(stage.name), joined(stage.name);
  std::ranges::replace(dashed, '_', '-');
  std::erase(joined, '_');
  return name == stage.name || name == dashed || name == joined ||
         (!name.empty() && name == stage.other_name);
}

template <typename Entries, typename Is>
std::vector<Sampler> samplers_of(const Entries& entries, const Is& is, const char* kind) {
  if (entries.size() > kMostSamplers) {
    throw Error(fmt::format("there may be {} samplers", kMostSamplers));
  }
  std::vector<Sampler> samplers;
  for (const auto& entry : entries) {
    const auto stage =
        std::ranges::find_if(kStages, [&](const Stage& each) { return is(entry, each); });
    if (stage == std::end(kStages)) {
      std::string known;
      for (const Stage& each : kStages) known += fmt::format(" {} ({})", each.name, each.letter);
      throw Error(fmt::format("there is no sampler of the {} '{}' here; there are:{}", kind,
                              one_line(std::string{entry}), known));
    }
    samplers.push_back(stage->sampler);
  }
  return samplers;
}

/// How many tokens the penalties can lower; nullopt: they may raise some, or lower any number.
std::optional<int> lowered_by_penalties(const SamplingOptions& options) {
  const bool may_raise = options.repeat_penalty < 1 || options.frequency_penalty < 0 ||
                         options.presence_penalty < 0 || options.repeat_last_n < 0;
  return may_raise ? std::nullopt : std::optional(options.repeat_last_n);
}

}  // namespace

std::vector<Sampler> samplers_of_names(std::span<const std::string> names) {
  return samplers_of(names, is_name, "name");
}

std::vector<Sampler> samplers_of_letters(std::string_view letters) {
  return samplers_of(
      letters, [](char letter, const Stage& stage) { return stage.letter == letter; }, "letter");
}

SamplerState::SamplerState(const SamplingOptions& options)
    : mirostat_mu(2.0 * options.mirostat.tau),
      adaptive_sum(options.adaptive.target / (1.0 - options.adaptive.decay)),
      adaptive_weight(1.0 / (1.0 - options.adaptive.decay)) {}

void forbid(SamplingOptions& options, std::span<const Token> tokens) {
  for (const Token token : tokens) {
    options.logit_bias.push_back({token, -std::numeric_limits<float>::infinity()});
  }
}

int tokens_to_sample_from(const SamplingOptions& options) {
  // Lowered tokens come after others, at most as many as are lowered.
  constexpr int kMostLowered = 256;
  if (std::ranges::any_of(options.logit_bias, [](TokenLogit bias) { return bias.logit > 0; })) {
    return 0;
  }
  auto lowered = static_cast<std::int64_t>(options.logit_bias.size());
  for (const Sampler sampler : chain_of(options)) {
    const bool heats = sampler == Sampler::kTemperature;
    const bool is_greedy = heats && options.temperature <= 0;
    if (is_greedy || sampler == Sampler::kTopK) {
      if (lowered > kMostLowered) return 0;
      return (is_greedy ? 1 : options.top_k) + static_cast<int>(lowered);
    }
    if (sampler == Sampler::kPenalties) {
      const std::optional<int> by_penalties = lowered_by_penalties(options);
      if (!by_penalties) return 0;
      lowered += *by_penalties;
      continue;
    }
    // These do not ask how likely the other tokens are.
    const bool is_local = sampler == Sampler::kMinP || (heats && !has_own_temperature(options));
    if (!is_local) return 0;
  }
  return 0;
}

Token sample_token(std::span<const float> logits, std::span<const Token> history, int position,
                   const SamplingOptions& options, SamplerState& state) {
  Candidates candidates = candidates_of(logits, options);
  return choose(candidates, {history, position, options}, state, logits.size());
}

Token sample_token(std::span<const TokenLogit> best, std::span<const Token> history, int position,
                   const SamplingOptions& options, SamplerState& state) {
  Candidates candidates = candidates_of(best, options);
  return choose(candidates, {history, position, options}, state, best.size());
}

std::vector<TokenShare> distribution(std::span<const float> logits, std::span<const Token> history,
                                     int position, const SamplingOptions& options,
                                     const SamplerState& state) {
  Candidates candidates = candidates_of(logits, options);
  leave_out(candidates, {history, position, options}, state, logits.size());
  candidates.rank_all();
  std::vector<double> shares = candidates.probabilities();
  if (adapts(options)) shares = adapted(shares, options.adaptive, state);
  std::vector<TokenShare> tokens;
  for (std::size_t i = 0; i < shares.size(); ++i) {
    tokens.push_back({candidates[i].token, shares[i]});
  }
  return tokens;
}

}  // namespace firp
