#include "engine/token_chain.h"

#include <algorithm>
#include <numeric>

namespace firp {

std::vector<Row> token_chain(int sequence, std::span<const Token> tokens) {
  std::vector<Row> rows;
  for (int i = 0; i < std::ssize(tokens); ++i) {
    rows.push_back({.sequence = sequence, .parent = i == 0 ? kContext : i - 1, .token = tokens[i]});
  }
  return rows;
}

std::vector<int> first_rows(std::size_t count) {
  std::vector<int> rows(count);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

int common_prefix(std::span<const Token> a, std::span<const Token> b) {
  return static_cast<int>(std::ranges::mismatch(a, b).in1 - a.begin());
}

std::optional<Pass> append_tokens(Engine& engine, int sequence, std::span<const Token> tokens) {
  std::optional<Pass> last;
  while (!tokens.empty()) {
    const auto count = std::min<std::size_t>(tokens.size(), engine.options().max_rows);
    std::vector<Row> rows = token_chain(sequence, tokens.first(count));
    for (Row& row : rows) row.decoded = &row == &rows.back();
    last = engine.forward(rows);
    last->commit(sequence, first_rows(count));
    tokens = tokens.subspan(count);
  }
  return last;
}

}  // namespace firp
