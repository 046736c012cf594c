#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "engine/row.h"

namespace firp {

/// The tokens that may still be chosen: at least one. They are ranked, likeliest first, no further
/// than they are asked for, which as a rule is a few of many; while none is, they are in the order
/// of tokens.
class Candidates {
 public:
  /// What has a number as its logit. refuse_logits() where nothing has, or one is infinite.
  explicit Candidates(std::span<const float> logits);
  /// The same of tokens that are ranked already.
  explicit Candidates(std::span<const TokenLogit> best);

  std::size_t size() const { return tokens_.size(); }
  std::span<const TokenLogit> tokens() const { return tokens_; }  ///< the ranked ones first
  /// Whether there are more than `rank`; ranks as many.
  bool has(std::size_t rank);
  const TokenLogit& operator[](std::size_t rank) const { return tokens_[rank]; }
  void rank_all();

  /// In proportion to the probability: 1 for the likeliest.
  double weight(const TokenLogit& token) const {
    return std::exp((double(token.logit) - greatest_) / temperature_);
  }
  double total_weight() const;
  std::vector<double> probabilities() const;  ///< in the order of tokens()

  double temperature() const { return temperature_; }
  float greatest_logit() const { return greatest_; }
  void multiply_temperature(double factor) { temperature_ *= factor; }

  void keep(std::size_t count);                    ///< the likeliest ones; at least 1
  void keep_from(double least_logit);              ///< those that have it or more
  void keep_only(std::vector<TokenLogit> tokens);  ///< some of the candidates
  void drop_likeliest(std::size_t count);          ///< fewer than all

  /// `change(find)` may alter what find(token) points to: a logit, or nothing where the token is no
  /// candidate. What becomes minus infinity is none any more.
  template <typename Change>
  void change_logits(const Change& change) {
    settle_temperature();
    unrank();
    change([this](Token token) { return find(token); });
    drop_impossible();
  }

 private:
  float* find(Token token);
  void settle_temperature();
  void unrank();
  void drop_impossible();

  std::vector<TokenLogit> tokens_;
  std::size_t ranked_ = 0;
  float depth_ = 4;  ///< below the greatest logit, to which is ranked next: few tokens are nearer
  float greatest_ = 0;
  double temperature_ = 1;  ///< by which logits are to be divided
};

}  // namespace firp
