#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace firp {

/// User turns from a built-in list of patterns (chat, questions, code, lists, stories, letters,
/// translation, maths, ...) whose slots are filled at random. All different, `count` at most; a
/// function of the seed.
std::vector<std::string> built_in_instructions(int count, std::uint64_t seed);

/// A user turn that works on a passage: summarise, translate, rewrite, answer from it.
std::string passage_instruction(const std::string& passage, std::uint64_t seed);

/// A user turn that wants a sentence in English.
std::string translation_instruction(const std::string& sentence, const std::string& language,
                                    std::uint64_t seed);

/// How people begin a request ("How do I", "Write a"): the model completes them.
const std::vector<std::string>& instruction_openers();

/// How published texts begin: the model goes on as if there were no chat.
struct DocumentOpener {
  std::string text;
  std::string language;  ///< empty for English
};
const std::vector<DocumentOpener>& document_openers();

}  // namespace firp
