#include "bench/prompts.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "base/error.h"
#include "bench/bench.h"
#include "model/text_input.h"

namespace firp {
namespace {

bool is_text(const nlohmann::json& value) {
  return value.is_string() && !value.get_ref<const std::string&>().empty();
}

/// A number or a text, as text; empty: neither.
std::string identity(const nlohmann::json& value) {
  if (value.is_string()) return value.get<std::string>();
  return value.is_number_integer() ? value.dump() : "";
}

/// The problem with a line in Spec-Bench's form; empty: none.
std::string parse_spec_bench(const nlohmann::json& object, BenchPrompt& prompt) {
  prompt.question_id = identity(object.value("question_id", nlohmann::json()));
  if (prompt.question_id.empty()) return "\"question_id\" must be a number or a string";
  const nlohmann::json category = object.value("category", nlohmann::json());
  if (!is_text(category)) return "\"category\" must be a string";
  if (category == kAllCategories) return "the category \"all\" is taken for the sum";
  const nlohmann::json& turns = object.at("turns");
  if (!turns.is_array() || turns.empty() || !std::all_of(turns.begin(), turns.end(), is_text)) {
    return "\"turns\" must be a list of one or more texts";
  }
  prompt.category = category.get<std::string>();
  prompt.turns = turns.get<std::vector<std::string>>();
  return "";
}

/// The same for a line whose one turn is the text of `key`.
std::string parse_single(const nlohmann::json& object, const char* key, const char* category,
                         const char* instruction, int line, BenchPrompt& prompt) {
  const nlohmann::json& text = object.at(key);
  if (!is_text(text)) return fmt::format("\"{}\" must be a text", key);
  prompt.question_id = identity(object.value("id", nlohmann::json(line)));
  if (prompt.question_id.empty()) return "\"id\" must be a number or a string";
  prompt.category = category;
  prompt.turns = {instruction + text.get<std::string>()};
  return "";
}

std::string parse_line(const std::string& text, int line, BenchPrompt& prompt) {
  const nlohmann::json object =
      nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false, /*ignore_comments=*/false);
  if (!object.is_object()) return "not a JSON object";
  if (object.contains("turns")) return parse_spec_bench(object, prompt);
  if (object.contains("question")) {
    return parse_single(object, "question", "gsm8k", "", line, prompt);
  }
  if (object.contains("article")) {
    return parse_single(object, "article", "summarization", "Summarize: ", line, prompt);
  }
  return "no prompt: it needs \"turns\" (as Spec-Bench), \"question\" (GSM8K) or \"article\" "
         "(CNN/DM)";
}

}  // namespace

std::vector<BenchPrompt> read_bench_prompts(const std::filesystem::path& path, int limit,
                                            int turns) {
  TextInput file("the prompts", path);
  std::string line;
  std::vector<BenchPrompt> prompts;
  std::map<std::string, int> taken;
  std::set<std::pair<std::string, std::string>> questions;
  for (int number = 1; file.next_line(line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    BenchPrompt prompt;
    std::string problem = parse_line(line, number, prompt);
    if (problem.empty() && !questions.emplace(prompt.category, prompt.question_id).second) {
      problem = fmt::format("question {} of {} stands above already", prompt.question_id,
                            prompt.category);
    }
    if (!problem.empty())
      throw Error(fmt::format("{}, line {}: {}", path.string(), number, problem));
    if (limit > 0 && ++taken[prompt.category] > limit) continue;
    if (turns > 0 && static_cast<int>(prompt.turns.size()) > turns) prompt.turns.resize(turns);
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) throw Error(fmt::format("{} holds no prompts", path.string()));
  return prompts;
}

}  // namespace firp
