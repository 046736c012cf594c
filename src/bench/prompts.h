#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace firp {

/// A conversation of one or more turns; the answers are the model's.
struct BenchPrompt {
  std::string question_id;
  std::string category;
  std::vector<std::string> turns;
};

/// Reads JSONL; each line has one of these forms:
///   {"question_id": 81, "category": "writing", "turns": ["...", "..."]}  as Spec-Bench
///   {"question": "...", "answer": "..."}    as GSM8K: category "gsm8k", the question as it stands
///   {"article": "...", "highlights": "..."} as CNN/DM: category "summarization", "Summarize: ..."
/// The reference answers are not used. In the last two forms "id" names the question; without it,
/// the number of its line.
///
/// At most `limit` prompts of each category and `turns` turns of each prompt; 0: all. An Error
/// names the file and line.
std::vector<BenchPrompt> read_bench_prompts(const std::filesystem::path& path, int limit,
                                            int turns);

}  // namespace firp
