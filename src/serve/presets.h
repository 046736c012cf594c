#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace firp {

/// What a router does otherwise for one of its models.
struct Preset {
  std::filesystem::path model = {};         ///< empty: the folder has it
  std::vector<std::string> arguments = {};  ///< of its `firp serve`
  bool loads_at_start = false;
};

/// llama-server's INI file of presets (its tools/server/README.md): a section for each model by its
/// name, "[*]" for all; keys are flags without dashes. An Error that names the line of what is
/// none.
std::map<std::string, Preset> read_presets(const std::filesystem::path& file);

}  // namespace firp
