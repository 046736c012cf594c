#include "decode/candidates.h"

#include <limits>

#include "engine/engine.h"

namespace firp {
namespace {

constexpr float kImpossible = -std::numeric_limits<float>::infinity();

}  // namespace

Candidates::Candidates(std::span<const float> logits) {
  tokens_.reserve(logits.size());
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > kImpossible) tokens_.push_back({static_cast<Token>(i), logits[i]});
  }
  drop_impossible();
}

Candidates::Candidates(std::span<const TokenLogit> best) : tokens_(best.begin(), best.end()) {
  drop_impossible();
  ranked_ = tokens_.size();
}

bool Candidates::has(std::size_t rank) {
  if (rank >= tokens_.size()) return false;
  while (rank >= ranked_) {
    const float least = greatest_ - depth_;
    depth_ *= 2;
    const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(ranked_);
    const auto end = std::partition(begin, tokens_.end(),
                                    [&](const TokenLogit& each) { return each.logit >= least; });
    std::sort(begin, end, likelier);
    ranked_ = static_cast<std::size_t>(end - tokens_.begin());
  }
  return true;
}

void Candidates::rank_all() {
  std::sort(tokens_.begin() + static_cast<std::ptrdiff_t>(ranked_), tokens_.end(), likelier);
  ranked_ = tokens_.size();
}

double Candidates::total_weight() const {
  double total = 0;
  for (const TokenLogit& each : tokens_) total += weight(each);
  return total;
}

std::vector<double> Candidates::probabilities() const {
  std::vector<double> shares;
  double total = 0;
  for (const TokenLogit& each : tokens_) {
    shares.push_back(weight(each));
    total += shares.back();
  }
  for (double& share : shares) share /= total;
  return shares;
}

void Candidates::keep(std::size_t count) {
  if (count >= tokens_.size()) return;
  if (count > ranked_) {
    const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(ranked_);
    const auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(count);
    std::partial_sort(begin, end, tokens_.end(), likelier);
  }
  tokens_.resize(count);
  ranked_ = count;
}

void Candidates::keep_from(double least_logit) {
  std::erase_if(tokens_, [&](const TokenLogit& each) { return each.logit < least_logit; });
  ranked_ = std::min(ranked_, tokens_.size());  // the least likely ones went
}

void Candidates::keep_only(std::vector<TokenLogit> tokens) {
  tokens_ = std::move(tokens);
  ranked_ = 0;
  rank_all();
  greatest_ = tokens_.front().logit;
}

void Candidates::drop_likeliest(std::size_t count) {
  if (count == 0) return;
  has(count);
  tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(count));
  ranked_ -= count;
  greatest_ = tokens_.front().logit;
}

float* Candidates::find(Token token) {
  const auto at = std::ranges::lower_bound(tokens_, token, {}, &TokenLogit::token);
  return at == tokens_.end() || at->token != token ? nullptr : &at->logit;
}

void Candidates::settle_temperature() {
  if (temperature_ == 1) return;
  for (TokenLogit& each : tokens_) each.logit = static_cast<float>(each.logit / temperature_);
  temperature_ = 1;
}

void Candidates::unrank() {
  if (ranked_ > 0) std::ranges::sort(tokens_, {}, &TokenLogit::token);
  ranked_ = 0;
}

void Candidates::drop_impossible() {
  std::erase_if(tokens_, [](const TokenLogit& each) { return !(each.logit > kImpossible); });
  if (tokens_.empty()) refuse_logits();
  greatest_ = std::ranges::max(tokens_, {}, &TokenLogit::logit).logit;
  depth_ = 4;
  if (!std::isfinite(greatest_)) refuse_logits();
}

}  // namespace firp
