#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "engine/engine.h"

namespace firp {

/// The table for people: a line for each category and method.
std::string bench_table(const std::vector<BenchResult>& results);

/// What ran: the processor, and the model and heads by name and identity. `heads`: empty for none.
nlohmann::ordered_json bench_machine(const Engine& engine, const Model& model,
                                     const std::filesystem::path& heads);

/// The object that programs read: machine, settings (as given) and results.
nlohmann::ordered_json bench_json(nlohmann::ordered_json machine, nlohmann::ordered_json settings,
                                  const std::vector<BenchResult>& results);

/// An Error where `path` could not be written, told before the work instead of after it.
void require_writable(const std::filesystem::path& path);

/// Writes to a temporary file beside `path` and renames it.
void write_json(const nlohmann::ordered_json& json, const std::filesystem::path& path);

/// "AMD EPYC ...", from /proc/cpuinfo; "unknown" where there is none.
std::string cpu_name();

}  // namespace firp
