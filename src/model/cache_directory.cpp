#include "model/cache_directory.h"

#include <fmt/format.h>

#include <cstdlib>
#include <functional>
#include <string>

namespace firp {
namespace {

const char* variable(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

}  // namespace

std::optional<std::filesystem::path> cache_directory() {
  if (const char* const cache = variable("FIRP_CACHE")) return cache;
  if (const char* const home = variable("HOME")) {
    return std::filesystem::path(home) / ".cache" / "firp";
  }
  return std::nullopt;
}

std::optional<std::filesystem::path> cache_file(std::string_view kind, const GgufFile& model) {
  const auto cache = cache_directory();
  if (!cache) return std::nullopt;
  std::error_code error;
  const std::string whole_path = std::filesystem::canonical(model.path(), error).string();
  if (error) return std::nullopt;
  std::filesystem::create_directories(*cache / kind, error);
  return *cache / kind /
         fmt::format("{}-{:016x}", model.path().stem().string(),
                     std::hash<std::string>()(whole_path));
}

}  // namespace firp
