#include "decode/dry.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

namespace firp {
namespace {

/// Of each place how many tokens from there on are those that the text begins with (the Z-function,
/// in linear time); of the first one: 0.
std::vector<int> common_beginnings(std::span<const Token> text) {
  const auto size = static_cast<int>(text.size());
  std::vector<int> lengths(size, 0);
  int begin = 0, end = 0;  // the match that reaches furthest, of those that began before
  for (int i = 1; i < size; ++i) {
    int length = i < end ? std::min(end - i, lengths[i - begin]) : 0;
    while (i + length < size && text[length] == text[i + length]) ++length;
    if (i + length > end) {
      begin = i;
      end = i + length;
    }
    lengths[i] = length;
  }
  return lengths;
}

bool is_breaker(Token token, const DryOptions& options) {
  if (!options.texts) return false;
  const std::string& text = options.texts->at(token);
  return std::ranges::any_of(options.sequence_breakers, [&](const std::string& breaker) {
    return text.find(breaker) != std::string::npos;
  });
}

/// Tokens behind the last breaker.
int tokens_since_breaker(std::span<const Token> tokens, const DryOptions& options) {
  if (!options.texts) return static_cast<int>(tokens.size());
  std::string text;
  std::vector<std::size_t> begins;
  for (const Token token : tokens) {
    begins.push_back(text.size());
    text += options.texts->at(token);
  }
  std::size_t end = 0;
  for (const std::string& breaker : options.sequence_breakers) {
    const std::size_t at = text.rfind(breaker);
    if (at != std::string::npos) end = std::max(end, at + breaker.size());
  }
  return static_cast<int>(begins.end() - std::ranges::lower_bound(begins, end));
}

}  // namespace

TokenTexts token_texts(const Vocabulary& vocabulary) {
  std::vector<std::string> texts;
  for (Token token = 0; token < vocabulary.size(); ++token) {
    texts.push_back(vocabulary.piece(token, /*show_special=*/true));
  }
  return std::make_shared<const std::vector<std::string>>(std::move(texts));
}

std::vector<TokenLogit> dry_penalties(std::span<const Token> history, const DryOptions& options) {
  const std::size_t most = options.penalty_last_n < 0 ? history.size() : options.penalty_last_n;
  history = history.last(std::min(history.size(), most));
  if (std::cmp_less_equal(history.size(), options.allowed_length)) return {};

  const std::vector<Token> backwards(history.rbegin(), history.rend());
  const std::vector<int> repeated = common_beginnings(backwards);
  if (std::ranges::max(repeated) < options.allowed_length) return {};
  const int most_repeated = tokens_since_breaker(history, options);
  if (most_repeated < options.allowed_length) return {};

  std::unordered_map<Token, int> longest;  // by the token that went on
  for (std::size_t i = 1; i < backwards.size(); ++i) {
    const int length = std::min(repeated[i], most_repeated);
    if (length < options.allowed_length) continue;
    int& known = longest[backwards[i - 1]];
    known = std::max(known, length);
  }
  std::vector<TokenLogit> penalties;
  for (const auto& [token, length] : longest) {
    if (is_breaker(token, options)) continue;
    const double penalty = double(options.multiplier) *
                           std::pow(double(options.base), length - options.allowed_length);
    penalties.push_back(
        {token, static_cast<float>(std::min<double>(penalty, std::numeric_limits<float>::max()))});
  }
  return penalties;
}

}  // namespace firp
