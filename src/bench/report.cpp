#include "bench/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

#include "model/error.h"

namespace firp {
namespace {

[[noreturn]] void fail_to_write(const std::filesystem::path& path) {
  throw Error(fmt::format("cannot write {}: {}", path.string(), std::strerror(errno)));
}

/// What the planner chose over all prompts, and whether it saw what it expected. "" where none did.
std::string plan_table(const std::vector<BenchResult>& results, std::size_t method_width) {
  std::string table;
  for (const BenchResult& result : results) {
    const DraftPlan& plan = result.plan;
    if (result.category != kAllCategories || plan.expected_seconds == 0) continue;
    if (table.empty()) {
      table = fmt::format("\n{:<{}}  {:>10}  {:>8}  {:>28}  {:>24}\n", "planner", method_width,
                          "nodes/pass", "drafting", "tokens/pass expected, seen",
                          "ms/pass expected, seen");
    }
    const auto forwards = static_cast<double>(result.forwards);
    fmt::format_to(std::back_inserter(table),
                   "{:<{}}  {:>10.1f}  {:>6.0f} %  {:>20.2f}  {:>6.2f}  {:>16.2f}  {:>6.2f}\n",
                   result.method, method_width, static_cast<double>(plan.nodes) / forwards,
                   100.0 * static_cast<double>(plan.drafting_passes) / forwards,
                   plan.expected_tokens / forwards, result.tokens_per_forward(),
                   1e3 * plan.expected_seconds / forwards, 1e3 * result.seconds / forwards);
  }
  return table;
}

}  // namespace

std::string bench_table(const std::vector<BenchResult>& results) {
  std::size_t category_width = std::strlen("category");
  std::size_t method_width = std::strlen("method");
  for (const BenchResult& result : results) {
    category_width = std::max(category_width, result.category.size());
    method_width = std::max(method_width, result.method.size());
  }
  std::string table = fmt::format("{:<{}}  {:<{}}  {:>7}  {:>7}  {:>8}  {:>11}  {:>8}  {:>9}\n",
                                  "category", category_width, "method", method_width, "prompts",
                                  "tokens", "tokens/s", "tokens/pass", "speed-up", "same text");
  std::string last_category;
  for (const BenchResult& result : results) {
    const bool compared = result.speedup_over_plain > 0;
    fmt::format_to(
        std::back_inserter(table),
        "{:<{}}  {:<{}}  {:>7}  {:>7}  {:>8.1f}  {:>11.2f}  {:>8}  {:>9}\n",
        result.category == last_category ? "" : result.category, category_width, result.method,
        method_width, result.prompts, result.tokens, result.tokens_per_second(),
        result.tokens_per_forward(),
        compared ? fmt::format("{:.2f}x", result.speedup_over_plain) : "-",
        compared ? fmt::format("{}/{}", result.identical_to_plain, result.prompts) : "-");
    last_category = result.category;
  }
  return table + plan_table(results, method_width);
}

nlohmann::ordered_json bench_machine(const Engine& engine, const Model& model,
                                     const std::filesystem::path& heads) {
  const ModelIdentity identity = model.identity();
  nlohmann::ordered_json machine = {
      {"cpu", cpu_name()},
      {"cores", std::thread::hardware_concurrency()},
      {"threads", engine.options().threads},
      {"isa", engine.isa()},
      {"cache_type", engine.options().cache_type == CacheType::kQ8_0 ? "q8_0" : "f16"},
      {"model", model.has_file() ? model.file().path().filename().string() : model.config().name},
      {"random_weights", !model.has_file()},
      {"model_architecture", identity.architecture},
      {"model_hash", identity.tensor_hash},
      {"heads", nullptr},
      {"heads_base_hash", nullptr}};
  if (!heads.empty()) {
    machine["heads"] = heads.filename().string();
    machine["heads_base_hash"] = read_heads(heads, nullptr).base.tensor_hash;
  }
  return machine;
}

nlohmann::ordered_json bench_json(nlohmann::ordered_json machine, nlohmann::ordered_json settings,
                                  const std::vector<BenchResult>& results) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const BenchResult& result : results) {
    const bool compared = result.speedup_over_plain > 0;
    nlohmann::ordered_json entry = {{"method", result.method},
                                    {"category", result.category},
                                    {"prompts", result.prompts},
                                    {"tokens", result.tokens},
                                    {"forwards", result.forwards},
                                    {"seconds", result.seconds},
                                    {"prefill_seconds", result.prefill_seconds},
                                    {"tokens_per_second", result.tokens_per_second()},
                                    {"tokens_per_forward", result.tokens_per_forward()},
                                    {"speedup_over_plain", nullptr},
                                    {"identical_to_plain", nullptr}};
    if (compared) {
      entry["speedup_over_plain"] = result.speedup_over_plain;
      entry["identical_to_plain"] = result.identical_to_plain;
    }
    entry["drafted_nodes"] = result.plan.nodes;
    entry["drafting_passes"] = result.plan.drafting_passes;
    if (result.plan.expected_seconds > 0) {
      entry["expected_tokens"] = result.plan.expected_tokens;
      entry["expected_seconds"] = result.plan.expected_seconds;
    }
    list.push_back(std::move(entry));
  }
  return {{"machine", std::move(machine)},
          {"settings", std::move(settings)},
          {"results", std::move(list)}};
}

void require_writable(const std::filesystem::path& path) {
  std::error_code error;
  const bool exists = std::filesystem::exists(path, error);
  if (exists && !std::filesystem::is_regular_file(path, error)) {
    throw Error(fmt::format("cannot write {}: it is not a regular file", path.string()));
  }
  const std::filesystem::path directory =
      path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  if (access(directory.c_str(), W_OK | X_OK) != 0) fail_to_write(path);
}

void write_json(const nlohmann::ordered_json& json, const std::filesystem::path& path) {
  // Category names come from a file: what is not UTF-8 is replaced.
  const std::string text =
      json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  const std::filesystem::path temporary = fmt::format("{}.tmp-{}", path.string(), getpid());
  std::FILE* file = std::fopen(temporary.c_str(), "w");
  if (file == nullptr) fail_to_write(path);
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = std::fclose(file) == 0;
  if (!written || !closed || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int reason = errno;
    std::remove(temporary.c_str());
    errno = reason;
    fail_to_write(path);
  }
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) {
      const std::size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "unknown";
}

}  // namespace firp
