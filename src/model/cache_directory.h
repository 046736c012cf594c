#pragma once

#include <filesystem>
#include <optional>
#include <string_view>

#include "model/gguf_file.h"

namespace firp {

/// Where what can be made again is kept between runs: $FIRP_CACHE, or ~/.cache/firp. nullopt where
/// the environment has neither.
std::optional<std::filesystem::path> cache_directory();

/// The place of what is kept of one model file: KIND/NAME-HASH in that directory, by the file's
/// whole path, so that a file which changes leaves nothing behind. The folder is made. nullopt for
/// a file without a name, too.
std::optional<std::filesystem::path> cache_file(std::string_view kind, const GgufFile& model);

}  // namespace firp
