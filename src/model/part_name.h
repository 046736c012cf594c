#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace firp {

/// What the name of one of the files of a model says, as llama-gguf-split gives them:
/// STEM-00002-of-00005.gguf.
struct PartName {
  std::filesystem::path stem;  ///< with its folder
  int part = 1, parts = 1;     ///< the first is 1

  /// The file of another part.
  std::filesystem::path file_of(int other_part) const;
};

/// nullopt: the file's name is no such name.
std::optional<PartName> part_name(const std::filesystem::path& file);

/// A model's path without .gguf, and without which part the file is: what names the model, and the
/// files beside it.
std::filesystem::path model_stem(const std::filesystem::path& file);
/// The same without its folder.
std::string model_name(const std::filesystem::path& file);

}  // namespace firp
