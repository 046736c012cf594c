#pragma once

#include <optional>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace firp {

/// Rows of tokens one behind the other, the first at the end of the sequence's context.
std::vector<Row> token_chain(int sequence, std::span<const Token> tokens);

/// 0 .. count - 1: all rows of a pass, or the path of a chain.
std::vector<int> first_rows(std::size_t count);

/// How many tokens two texts have in common from their beginnings on.
int common_prefix(std::span<const Token> a, std::span<const Token> b);

/// Runs tokens behind a sequence's context and commits them, in passes as large as they may be. The
/// last pass, in which the last token's row alone is decoded; nothing for no tokens.
std::optional<Pass> append_tokens(Engine& engine, int sequence, std::span<const Token> tokens);

}  // namespace firp
