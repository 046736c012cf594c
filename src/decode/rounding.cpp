#include "decode/rounding.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine/token_chain.h"

namespace firp {
namespace {

constexpr int kTokens = 64;

/// The logits behind `prompt` and each of `tokens`, run in passes of `rows` rows.
std::vector<float> logits_of(Engine& engine, Token prompt, std::span<const Token> tokens,
                             std::size_t rows) {
  std::vector<float> all;
  const int sequence = engine.add_sequence();
  append_tokens(engine, sequence, {&prompt, 1});
  while (!tokens.empty()) {
    const std::size_t count = std::min(rows, tokens.size());
    const Pass pass = engine.forward(token_chain(sequence, tokens.first(count)));
    const std::span<const float> logits = pass.logits(first_rows(count));
    all.insert(all.end(), logits.begin(), logits.end());
    pass.commit(sequence, first_rows(count));
    tokens = tokens.subspan(count);
  }
  engine.remove_sequence(sequence);
  return all;
}

}  // namespace

float measure_tie_margin(Engine& engine) {
  // What follows a token in the middle of the vocabulary, greedily.
  const Token prompt = engine.config().vocabulary_size / 2;
  std::vector<Token> tokens = {prompt};
  std::vector<float> alone;  // the logits behind each token but the first, in passes of one row
  const int sequence = engine.add_sequence();
  while (std::ssize(tokens) <= std::min(kTokens, engine.options().context - 1)) {
    const Pass pass = *append_tokens(engine, sequence, {&tokens.back(), 1});
    const int first[] = {0};
    if (tokens.size() > 1) {
      const std::span<const float> logits = pass.logits(first);
      alone.insert(alone.end(), logits.begin(), logits.end());
    }
    tokens.push_back(pass.best_tokens(first, 1)[0].tokens.front().token);
  }
  engine.remove_sequence(sequence);
  const std::span<const Token> text = std::span(tokens).subspan(1, tokens.size() - 2);

  float largest = 0;
  for (std::size_t rows = 2; rows <= static_cast<std::size_t>(kTokens); rows *= 2) {
    if (static_cast<int>(rows) > engine.options().max_rows) break;
    const std::vector<float> together = logits_of(engine, prompt, text, rows);
    for (std::size_t i = 0; i < alone.size(); ++i) {
      largest = std::max(largest, std::abs(together[i] - alone[i]));
    }
  }
  return 2 * largest;  // the two best may have moved towards each other
}

}  // namespace firp
