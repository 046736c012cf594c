#include "bench/prompts.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "model/test_files.h"

namespace firp {
namespace {

class PromptsTest : public testing::Test {
 protected:
  std::filesystem::path file(const std::string& text) const {
    const std::filesystem::path path = directory_ / "prompts.jsonl";
    std::ofstream(path) << text;
    return path;
  }

  std::string error(const std::string& text) const {
    try {
      read_bench_prompts(file(text), 0, 0);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }

  const TemporaryDirectory directory_;
};

constexpr const char* kPrompts =
    R"({"question_id": 81, "category": "writing", "turns": ["a", "b"]})"
    "\n\n"
    R"({"question_id": "x", "category": "qa", "turns": ["c"], "more": 1})"
    "\n"
    R"({"question_id": 83, "category": "writing", "turns": ["d", "e", "f"]})";

TEST_F(PromptsTest, ReadsPromptsInTheFormOfSpecBench) {
  const auto prompts = read_bench_prompts(file(kPrompts), 0, 0);
  ASSERT_EQ(prompts.size(), 3u);
  EXPECT_EQ(prompts[0].question_id, "81");
  EXPECT_EQ(prompts[1].question_id, "x");
  EXPECT_EQ(prompts[1].category, "qa");
  EXPECT_EQ(prompts[2].turns, (std::vector<std::string>{"d", "e", "f"}));
}

TEST_F(PromptsTest, LimitsPromptsByCategoryAndTurnsByPrompt) {
  const auto prompts = read_bench_prompts(file(kPrompts), 1, 1);
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[0].turns, std::vector<std::string>{"a"});
  EXPECT_EQ(prompts[1].question_id, "x");
}

TEST_F(PromptsTest, ReadsTheFormsOfGsm8kAndCnnDm) {
  const auto prompts =
      read_bench_prompts(file(R"({"question": "How many?", "answer": "#### 7"})"
                              "\n"
                              R"({"id": "f00", "article": "(CNN) A cat.", "highlights": "Cat."})"
                              "\n"
                              R"({"id": 4, "question": "And now?"})"),
                         0, 0);
  ASSERT_EQ(prompts.size(), 3u);
  EXPECT_EQ(prompts[0].question_id, "1");
  EXPECT_EQ(prompts[0].category, "gsm8k");
  EXPECT_EQ(prompts[0].turns, std::vector<std::string>{"How many?"});
  EXPECT_EQ(prompts[1].question_id, "f00");
  EXPECT_EQ(prompts[1].category, "summarization");
  EXPECT_EQ(prompts[1].turns, std::vector<std::string>{"Summarize: (CNN) A cat."});
}

TEST_F(PromptsTest, RefusesAQuestionThatStandsThereTwice) {
  const std::string line = R"({"question_id": 1, "category": "qa", "turns": ["c"]})";
  EXPECT_NE(error(line + "\n" + line).find("line 2: question 1 of qa stands above already"),
            std::string::npos);
  EXPECT_EQ(error(line + "\n" + R"({"question_id": 1, "category": "rag", "turns": ["c"]})"), "");
}

TEST_F(PromptsTest, NamesTheFileAndLineOfABadPrompt) {
  const std::string good = R"({"question_id": 1, "category": "qa", "turns": ["c"]})";
  for (const char* bad :
       {"{", "[]", "7", R"({"category": "qa", "turns": ["c"]})",
        R"({"question_id": 1, "turns": ["c"]})", R"({"question_id": 1, "category": "qa"})",
        R"({"question_id": 1, "category": "qa", "turns": []})",
        R"({"question_id": 1, "category": "qa", "turns": [1]})",
        R"({"question_id": 1, "category": "qa", "turns": [""]})",
        R"({"question_id": 1, "category": "qa", "turns": "c"})",
        R"({"question_id": 1, "category": "all", "turns": ["c"]})", R"({"question": ""})",
        R"({"article": 5})", R"({"id": [], "question": "q"})", R"({"id": 1, "turns": ["c"]})",
        R"({"question_id": 1, "category": "qa", "turns": ["c"]} x)",
        "{\"question_id\": 1, \"category\": \"\xff\", \"turns\": [\"c\"]}"}) {
    const std::string message = error(good + "\n" + bad + "\n");
    EXPECT_NE(message.find("prompts.jsonl, line 2: "), std::string::npos) << bad << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
  EXPECT_NE(error("\n \n").find("holds no prompts"), std::string::npos);
  EXPECT_THROW(read_bench_prompts(directory_ / "nothing", 0, 0), Error);
  EXPECT_THROW(read_bench_prompts(directory_.path(), 0, 0), Error);
}

}  // namespace
}  // namespace firp
