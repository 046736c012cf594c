#include "cli/cost_cache.h"

#include <fmt/format.h>
#include <link.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "bench/report.h"
#include "decode/rounding.h"
#include "model/cache_directory.h"
#include "plan/measuring.h"

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
  return fmt::format("10|{}|{}|{} threads|cache {}|rough {}|{}|{}", cpu_name(), engine.isa(),
                     options.threads, static_cast<int>(options.cache_type), options.rough_drafts,
                     stamp(model), stamp(heads));
}

/// Changes with the libraries that compute for llama.cpp's engine.
std::string stamp_of_libllama() {
  std::string all;
  const auto add = [](dl_phdr_info* library, std::size_t, void* to) {
    const std::filesystem::path path = library->dlpi_name;
    const std::string name = path.filename().string();
    if (name.starts_with("libggml") || name.starts_with("libllama")) {
      *static_cast<std::string*>(to) += stamp(path) + "|";
    }
    return 0;
  };
  dl_iterate_phdr(add, &all);
  return all;
}

std::filesystem::path file_of(const std::filesystem::path& directory, const std::string& key) {
  return directory / fmt::format("{:016x}.json", std::hash<std::string>()(key));
}

void write(const std::filesystem::path& path, const nlohmann::ordered_json& json) {
  std::error_code error;
  std::filesystem::create_directories(path.parent_path(), error);
  try {
    write_json(json, path);
  } catch (const Error&) {  // a folder that cannot be written, or a full disk: measured next time
  }
}

std::optional<PassCosts> read(const std::filesystem::path& path, const std::string& key) {
  std::ifstream file(path);
  const nlohmann::json json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  try {
    if (json.at("key") != key) return std::nullopt;
    PassCosts costs{.draft_seconds = json.at("draft_seconds").get<std::vector<double>>(),
                    .position_seconds = json.at("position_seconds"),
                    .keeps_weights = json.at("keeps_weights")};
    for (const auto& [rows, seconds] : json.at("verify_seconds").items()) {
      costs.verify_seconds[std::stoi(rows)] = seconds;
    }
    if (costs.verify_seconds.empty()) return std::nullopt;
    return costs;
  } catch (const std::exception&) {  // no such file, or another program's
    return std::nullopt;
  }
}

nlohmann::ordered_json json_of(const std::string& key, const PassCosts& costs) {
  nlohmann::ordered_json json = {{"key", key},
                                 {"draft_seconds", costs.draft_seconds},
                                 {"position_seconds", costs.position_seconds},
                                 {"keeps_weights", costs.keeps_weights}};
  for (const auto& [rows, seconds] : costs.verify_seconds) {
    json["verify_seconds"][std::to_string(rows)] = seconds;
  }
  return json;
}

}  // namespace

PassCosts cached_costs(Engine& engine, const std::filesystem::path& model,
                       const std::filesystem::path& heads) {
  const auto directory = cache_directory();
  if (!directory) return measure_costs(engine);
  const std::string key = key_of(engine, model, heads);
  const std::filesystem::path path = file_of(*directory / "costs", key);
  if (const auto costs = read(path, key)) return *costs;
  const PassCosts costs = measure_costs(engine);
  write(path, json_of(key, costs));
  return costs;
}

float cached_tie_margin(Engine& engine, const std::filesystem::path& model,
                        const LlamaOptions& llama, const std::string& flash_attention) {
  const auto directory = cache_directory();
  const bool cpu_alone = llama.devices == std::vector<std::string>{"none"} ||
                         engine.isa() == std::string_view("llama.cpp, CPU");
  if (!directory || !cpu_alone) return measure_tie_margin(engine);
  const std::string key =
      fmt::format("1|{}|{} rows|flash {}|{}", key_of(engine, model, ""), engine.options().max_rows,
                  flash_attention, stamp_of_libllama());
  const std::filesystem::path path = file_of(*directory / "ties", key);
  std::ifstream file(path);
  const nlohmann::json kept = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (kept.is_object() && kept.value("key", "") == key && kept.contains("margin") &&
      kept["margin"].is_number()) {
    return kept["margin"].get<float>();
  }
  const float margin = measure_tie_margin(engine);
  write(path, {{"key", key}, {"margin", margin}});
  return margin;
}

}  // namespace firp
