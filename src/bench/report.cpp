#include "bench/report.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/error.h"
#include "model/replaced_file.h"
#include "model/text_input.h"
#include "model/usable_cores.h"

namespace firp {
namespace {

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

std::string speedup_text(const BenchResult& result) {
  const std::string error = result.speedup_error && result.method != kPlain
                                ? fmt::format(" +-{:.2f}", *result.speedup_error)
                                : "";
  return fmt::format("{:.2f}x{}", result.speedup_over_plain, error);
}

/// FNV-1a of 64 bits, 16 hexadecimal digits: tells files apart.
std::string file_hash(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (auto byte = std::istreambuf_iterator<char>(file); byte != std::istreambuf_iterator<char>();
       ++byte) {
    hash = (hash ^ static_cast<unsigned char>(*byte)) * 0x100000001b3u;
  }
  return fmt::format("{:016x}", hash);
}

nlohmann::ordered_json or_null(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nullptr;
}

nlohmann::ordered_json json_of(const BenchResult& result) {
  nlohmann::ordered_json json = {
      {"method", result.method},
      {"category", result.category},
      {"prompts", result.prompts},
      {"tokens", result.tokens},
      {"forwards", result.forwards},
      {"seconds", result.seconds},
      {"prefill_seconds", result.prefill_seconds},
      {"tokens_per_second", result.tokens_per_second()},
      {"tokens_per_second_error", or_null(result.tokens_per_second_error)},
      {"tokens_per_second_spread", or_null(result.tokens_per_second_spread)},
      {"tokens_per_forward", result.tokens_per_forward()},
      {"tokens_per_forward_error", or_null(result.tokens_per_forward_error)},
      {"speedup_over_plain", nullptr},
      {"speedup_error", or_null(result.speedup_error)},
      {"identical_to_plain", nullptr}};
  if (result.speedup_over_plain > 0) {
    json["speedup_over_plain"] = result.speedup_over_plain;
    json["identical_to_plain"] = result.identical_to_plain;
  }
  json["drafted_nodes"] = result.plan.nodes;
  json["drafting_passes"] = result.plan.drafting_passes;
  if (result.plan.expected_seconds > 0) {
    json["expected_tokens"] = result.plan.expected_tokens;
    json["expected_seconds"] = result.plan.expected_seconds;
  }
  return json;
}

nlohmann::ordered_json json_of(const BenchRecord& record) {
  return {{"question_id", record.question_id},
          {"category", record.category},
          {"method", record.method},
          {"tokens", record.tokens},
          {"forwards", record.forwards},
          {"seconds", record.seconds},
          {"prefill_seconds", record.prefill_seconds},
          {"drafted_nodes", record.plan.nodes},
          {"drafting_passes", record.plan.drafting_passes},
          {"expected_tokens", record.plan.expected_tokens},
          {"expected_seconds", record.plan.expected_seconds},
          {"identical_to_plain", record.identical_to_plain},
          {"repeat_seconds", record.repeat_seconds}};
}

BenchRecord record_from(const nlohmann::ordered_json& json) {
  BenchRecord record;
  json.at("question_id").get_to(record.question_id);
  json.at("category").get_to(record.category);
  json.at("method").get_to(record.method);
  json.at("tokens").get_to(record.tokens);
  json.at("forwards").get_to(record.forwards);
  json.at("seconds").get_to(record.seconds);
  json.at("prefill_seconds").get_to(record.prefill_seconds);
  json.at("drafted_nodes").get_to(record.plan.nodes);
  json.at("drafting_passes").get_to(record.plan.drafting_passes);
  json.at("expected_tokens").get_to(record.plan.expected_tokens);
  json.at("expected_seconds").get_to(record.plan.expected_seconds);
  json.at("identical_to_plain").get_to(record.identical_to_plain);
  json.at("repeat_seconds").get_to(record.repeat_seconds);
  return record;
}

}  // namespace

std::string bench_table(const std::vector<BenchResult>& results) {
  std::size_t category_width = std::strlen("category");
  std::size_t method_width = std::strlen("method");
  for (const BenchResult& result : results) {
    category_width = std::max(category_width, result.category.size());
    method_width = std::max(method_width, result.method.size());
  }
  std::string table =
      fmt::format("{:<{}}  {:<{}}  {:>7}  {:>7}  {:>8}  {:>7}  {:>11}  {:>13}  {:>9}\n", "category",
                  category_width, "method", method_width, "prompts", "tokens", "tokens/s", "spread",
                  "tokens/pass", "speed-up", "same text");
  std::string last_category;
  for (const BenchResult& result : results) {
    const bool compared = result.speedup_over_plain > 0;
    fmt::format_to(
        std::back_inserter(table),
        "{:<{}}  {:<{}}  {:>7}  {:>7}  {:>8.1f}  {:>7}  {:>11.2f}  {:>13}  {:>9}\n",
        result.category == last_category ? "" : result.category, category_width, result.method,
        method_width, result.prompts, result.tokens, result.tokens_per_second(),
        result.tokens_per_second_spread ? fmt::format("{:.1f}", *result.tokens_per_second_spread)
                                        : "-",
        result.tokens_per_forward(), compared ? speedup_text(result) : "-",
        compared ? fmt::format("{}/{}", result.identical_to_plain, result.prompts) : "-");
    last_category = result.category;
  }
  return table + plan_table(results, method_width);
}

nlohmann::ordered_json bench_machine(const Engine& engine, const GgufFile* file,
                                     const std::filesystem::path& heads) {
  nlohmann::ordered_json machine = {
      {"cpu", cpu_name()},
      {"cores", std::thread::hardware_concurrency()},
      {"usable_cores", usable_cores()},
      {"threads", engine.options().threads},
      {"isa", engine.isa()},
      {"cache_type", ggml_type_name(ggml_type_of(engine.options().cache_type))},
      {"model", file != nullptr ? file->path().filename().string() : engine.config().name},
      {"random_weights", file == nullptr},
      {"model_architecture", engine.config().architecture},
      {"model_hash", file != nullptr ? identify(*file).tensor_hash : ""},
      {"heads", nullptr},
      {"heads_hash", nullptr},
      {"heads_base_hash", nullptr}};
  if (!heads.empty()) {
    machine["heads"] = heads.filename().string();
    machine["heads_hash"] = file_hash(heads);
    machine["heads_base_hash"] = read_heads(heads, nullptr).base.tensor_hash;
  }
  return machine;
}

nlohmann::ordered_json bench_json(const BenchReport& report) {
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (const BenchResult& result : sum_up(report.records)) results.push_back(json_of(result));
  nlohmann::ordered_json runs = nlohmann::ordered_json::array();
  for (const BenchRecord& record : report.records) runs.push_back(json_of(record));
  return {{"machine", report.machine},
          {"settings", report.settings},
          {"results", std::move(results)},
          {"runs", std::move(runs)}};
}

BenchReport read_bench_report(const std::filesystem::path& path) {
  const std::string text = TextInput("the results", path).text();
  try {
    const auto json = nlohmann::ordered_json::parse(text);
    BenchReport report{json.at("machine"), json.at("settings"), {}};
    for (const auto& run : json.at("runs")) report.records.push_back(record_from(run));
    if (!report.records.empty()) return report;
  } catch (const nlohmann::json::exception&) {
  }
  throw Error(fmt::format("{} is not what `firp bench --prompts ... --json` of this version writes",
                          path.string()));
}

void require_writable(const std::filesystem::path& path) {
  std::error_code error;
  const bool exists = std::filesystem::exists(path, error);
  if (exists && !std::filesystem::is_regular_file(path, error)) {
    throw Error(fmt::format("cannot write {}: it is not a regular file", path.string()));
  }
  const std::filesystem::path directory =
      path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  if (access(directory.c_str(), W_OK | X_OK) != 0) {
    throw Error(fmt::format("cannot write {}: {}", path.string(), std::strerror(errno)));
  }
}

void write_text(const std::string& text, const std::filesystem::path& path) {
  ReplacedFile file(path);
  file.write(text);
  file.replace();
}

void write_json(const nlohmann::ordered_json& json, const std::filesystem::path& path) {
  // Category names come from a file: what is not UTF-8 is replaced.
  write_text(json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n",
             path);
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
