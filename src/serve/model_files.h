#pragma once

#include <filesystem>
#include <map>
#include <string>

namespace firp {

/// The models of a folder, by their names: NAME.gguf; NAME-00001-of-00003.gguf, the first part of a
/// model in several files; and NAME/ with one of these in it. Drafting heads (*.firp.gguf) and
/// projectors of pictures (mmproj*) are none. An Error where the folder cannot be read, or two have
/// one name.
std::map<std::string, std::filesystem::path> find_models(const std::filesystem::path& folder);

}  // namespace firp
