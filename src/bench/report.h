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
nlohmann::ordered_json bench_machine(const Engine& engine, const GgufFile* file,
                                     const std::filesystem::path& heads);

/// What a run of prompts leaves: the records, with what ran and how.
struct BenchReport {
  nlohmann::ordered_json machine;
  nlohmann::ordered_json settings;
  std::vector<BenchRecord> records;
};

/// The object that programs read: machine, settings, results (the sums) and runs (the records).
nlohmann::ordered_json bench_json(const BenchReport& report);

/// Reads what bench_json() wrote. An Error names the file and tells what it should be.
BenchReport read_bench_report(const std::filesystem::path& path);

/// An Error where `path` could not be written, told before the work instead of after it.
void require_writable(const std::filesystem::path& path);

/// Writes to a temporary file beside `path` and renames it.
void write_text(const std::string& text, const std::filesystem::path& path);
void write_json(const nlohmann::ordered_json& json, const std::filesystem::path& path);

/// "AMD EPYC ...", from /proc/cpuinfo; "unknown" where there is none.
std::string cpu_name();

}  // namespace firp
