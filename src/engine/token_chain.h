#pragma once

#include <span>
#include <vector>

#include "engine/engine.h"

namespace firp {

/// Rows of tokens one behind the other, the first at the end of a context of `position` tokens.
std::vector<Row> token_chain(int sequence, int position, std::span<const Token> tokens);

/// 0 .. count - 1: all rows of a pass, or the path of a chain.
std::vector<int> first_rows(std::size_t count);

/// Runs tokens behind a sequence's context and commits them, in passes as large as they may be. The
/// last token's row in the last pass, the only one that is decoded; -1 for no tokens.
int append_tokens(Engine& engine, int sequence, std::span<const Token> tokens);

}  // namespace firp
