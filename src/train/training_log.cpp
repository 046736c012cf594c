#include "train/training_log.h"

#include <fmt/format.h>

#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

#include "base/error.h"
#include "model/text_input.h"

namespace firp {
namespace {

constexpr std::size_t kFieldsBeforeSteps = 4, kRates = 4;

std::string header(int steps) {
  std::string line = "seconds,updates,rows,loss";
  for (int step = 1; step <= steps; ++step) line += fmt::format(",top1_step{}", step);
  return line + ",chain,tree8,tree16,tree32";
}

void append(const std::filesystem::path& path, std::ios::openmode mode, const std::string& line) {
  std::ofstream file(path, mode);
  if (!(file << line << '\n').flush()) {
    throw Error(fmt::format("cannot write the log {}; does its directory exist, is the disk full?",
                            path.string()));
  }
}

/// All fields as numbers; empty where one is none.
std::vector<double> numbers(std::string_view line) {
  std::vector<double> fields;
  while (true) {
    const std::string_view field = line.substr(0, line.find(','));
    double value = 0;
    const auto [end, error] = std::from_chars(field.begin(), field.end(), value);
    if (error != std::errc() || end != field.end()) return {};
    fields.push_back(value);
    if (field.size() == line.size()) return fields;
    line.remove_prefix(field.size() + 1);
  }
}

}  // namespace

void begin_training_log(const std::filesystem::path& path, int steps, bool resume) {
  std::error_code error;
  const bool begun =
      std::filesystem::is_regular_file(path, error) && std::filesystem::file_size(path, error) > 0;
  if (!resume || !begun) append(path, std::ios::trunc, header(steps));
}

void append_to_training_log(const std::filesystem::path& path, const TrainingLogLine& line) {
  std::string text =
      fmt::format("{:.1f},{},{},{:.5f}", line.seconds, line.updates, line.rows, line.loss);
  for (const float top1 : line.top1) text += fmt::format(",{:.5f}", top1);
  const TokensPerForward& rates = line.tokens_per_forward;
  text += fmt::format(",{:.4f},{:.4f},{:.4f},{:.4f}", rates.chain, rates.tree8, rates.tree16,
                      rates.tree32);
  append(path, std::ios::app, text);
}

std::vector<TrainingLogLine> read_training_log(const std::filesystem::path& path) {
  TextInput file("the log", path);
  std::string text;
  const bool good = file.next_line(text);
  std::size_t steps = 0;
  while (steps < kMaxDraftSteps && text != header(static_cast<int>(steps))) ++steps;
  if (!good || text != header(static_cast<int>(steps))) {
    throw Error(fmt::format("{} is no log of firp train --log", path.string()));
  }
  std::vector<TrainingLogLine> lines;
  while (file.next_line(text)) {
    const std::vector<double> fields = numbers(text);
    if (fields.size() != kFieldsBeforeSteps + steps + kRates) {
      throw Error(fmt::format("{}, line {}: not a line of firp train --log", path.string(),
                              lines.size() + 2));
    }
    const double* const rates = fields.data() + kFieldsBeforeSteps + steps;
    const auto rate = [&](int i) { return static_cast<float>(rates[i]); };
    lines.push_back({.seconds = fields[0],
                     .updates = static_cast<int>(fields[1]),
                     .rows = static_cast<long long>(fields[2]),
                     .loss = fields[3],
                     .top1 = {fields.begin() + kFieldsBeforeSteps,
                              fields.begin() + kFieldsBeforeSteps + static_cast<long>(steps)},
                     .tokens_per_forward = {rate(0), rate(1), rate(2), rate(3)}});
  }
  if (lines.empty()) throw Error(fmt::format("{} holds no measurement yet", path.string()));
  return lines;
}

}  // namespace firp
