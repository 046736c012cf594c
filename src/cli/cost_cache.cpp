#include "cli/cost_cache.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "bench/report.h"
#include "model/cache_directory.h"
#include "model/error.h"

namespace firp {
namespace {

/// Changes when the file does. Hashing a large model would take longer than measuring.
std::string stamp(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  const auto time = std::filesystem::last_write_time(path, error).time_since_epoch().count();
  return error ? "" : fmt::format("{} {} {}", path.filename().string(), size, time);
}

/// All that the costs depend on.
std::string key_of(const Engine& engine, const std::filesystem::path& model,
                   const std::filesystem::path& heads) {
  const EngineOptions& options = engine.options();
  return fmt::format("6|{}|{}|{} threads|cache {}|rough {}|{}|{}", cpu_name(), engine.isa(),
                     options.threads, static_cast<int>(options.cache_type), options.rough_drafts,
                     stamp(model), stamp(heads));
}

std::optional<PassCosts> read(const std::filesystem::path& path, const std::string& key) {
  std::ifstream file(path);
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  try {
    if (json.at("key") != key) return std::nullopt;
    PassCosts costs{.draft_seconds = json.at("draft_seconds").get<std::vector<double>>(),
                    .position_seconds = json.at("position_seconds")};
    for (const auto& [rows, seconds] : json.at("verify_seconds").items()) {
      costs.verify_seconds[std::stoi(rows)] = seconds;
    }
    if (costs.verify_seconds.empty()) return std::nullopt;
    return costs;
  } catch (const std::exception&) {  // no such file, or another program's
    return std::nullopt;
  }
}

void write(const std::filesystem::path& path, const std::string& key, const PassCosts& costs) {
  nlohmann::ordered_json json = {{"key", key},
                                 {"draft_seconds", costs.draft_seconds},
                                 {"position_seconds", costs.position_seconds}};
  for (const auto& [rows, seconds] : costs.verify_seconds) {
    json["verify_seconds"][std::to_string(rows)] = seconds;
  }
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  try {
    write_json(json, path);
  } catch (const Error&) {  // a folder that cannot be written, or a full disk: measured next time
  }
}

}  // namespace

PassCosts cached_costs(Engine& engine, const std::filesystem::path& model,
                       const std::filesystem::path& heads) {
  const auto directory = cache_directory();
  if (!directory) return measure_costs(engine);
  const std::string key = key_of(engine, model, heads);
  const std::filesystem::path path =
      *directory / "costs" / fmt::format("{:016x}.json", std::hash<std::string>()(key));
  if (const auto costs = read(path, key)) return *costs;
  const PassCosts costs = measure_costs(engine);
  write(path, key, costs);
  return costs;
}

}  // namespace firp
