#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <vector>

#include "engine/engine.h"

// Contexts on disk: the tokens, and the keys and values that an engine has of them. A file is for
// the same model, engine, instruction set and type of keys and values (Engine::context_form); so a
// context that was taken in has the bits of one that was read.

namespace firp {

struct SavedContext {
  std::vector<Token> tokens;
  std::size_t bytes = 0;  ///< of the file
};

/// Writes the longest beginning of `tokens` that any sequence of the engine holds; where that is
/// none, nothing. An Error where the file cannot be written, which leaves one of that name as it
/// was.
SavedContext save_context(Engine& engine, std::span<const Token> tokens,
                          const std::filesystem::path& path);

/// Takes a context in that was saved, to be found by Engine::adopt. An Error for a file that is not
/// there, is no such file, is damaged, or was saved for something else, and where there is no room;
/// the engine is then as it was.
SavedContext restore_context(Engine& engine, const std::filesystem::path& path);

}  // namespace firp
