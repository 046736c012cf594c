#include "serve/model_files.h"

#include <fmt/format.h>

#include <optional>
#include <system_error>
#include <vector>

#include "base/error.h"
#include "model/ggml_log.h"
#include "model/part_name.h"

namespace firp {
namespace {

namespace fs = std::filesystem;

/// The model's name by its file; nullopt: it is no model, or not the first part of one.
std::optional<std::string> name_of(const fs::path& file) {
  const std::string name = file.filename().string();
  if (file.extension() != ".gguf" || name.ends_with(".firp.gguf") || name.starts_with("mmproj")) {
    return std::nullopt;
  }
  const auto part = part_name(file);
  if (part && part->part != 1) return std::nullopt;
  return model_name(file);
}

std::vector<fs::path> entries_of(const fs::path& folder) {
  try {
    const fs::directory_iterator entries(folder);
    return {begin(entries), end(entries)};
  } catch (const fs::filesystem_error& error) {
    throw Error(fmt::format("cannot read the folder of models {}: {} (--models-dir)",
                            one_line(folder.string()), error.code().message()));
  }
}

}  // namespace

std::map<std::string, fs::path> find_models(const fs::path& folder) {
  std::map<std::string, fs::path> models;
  const auto add = [&](const std::string& name, const fs::path& file) {
    const auto [place, added] = models.emplace(name, file);
    if (added) return;
    throw Error(fmt::format("{} and {} would both be the model '{}': rename one, or move it",
                            one_line(place->second.string()), one_line(file.string()),
                            one_line(name)));
  };
  for (const fs::path& entry : entries_of(folder)) {
    std::error_code ignored;  // of a link that leads nowhere
    if (!fs::is_directory(entry, ignored)) {
      if (const auto name = name_of(entry)) add(*name, entry);
      continue;
    }
    for (const fs::path& file : entries_of(entry)) {
      if (name_of(file)) add(entry.filename().string(), file);
    }
  }
  return models;
}

}  // namespace firp
