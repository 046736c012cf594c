#include "model/text_input.h"

#include <gtest/gtest.h>

#include <vector>

#include "model/test_files.h"

namespace firp {
namespace {

std::vector<std::string> lines_of(const std::string& bytes) {
  const TemporaryDirectory directory;
  write_bytes(directory / "text", bytes);
  TextInput input("the text", directory / "text");
  std::vector<std::string> lines;
  for (std::string line; input.next_line(line);) lines.push_back(line);
  return lines;
}

TEST(TextInput, GivesAllOfAFile) {
  const TemporaryDirectory directory;
  const std::string bytes = std::string(100000, 'x') + "\r\n\n" + std::string(1, '\0') + "y";
  write_bytes(directory / "text", bytes);
  EXPECT_EQ(TextInput("the text", directory / "text").text(), bytes);
}

TEST(TextInput, GivesLinesWithoutTheirBreaks) {
  EXPECT_EQ(lines_of(""), std::vector<std::string>());
  EXPECT_EQ(lines_of("a\n\nb\r\nc"), (std::vector<std::string>{"a", "", "b", "c"}));
  EXPECT_EQ(lines_of("a\n"), std::vector<std::string>{"a"});
}

TEST(TextInput, AnEndlessFileIsRefusedAtTheNamedLimit) {
  EXPECT_EQ(error_of([] { TextInput("the prompt", "/dev/zero").text(); }),
            "the prompt /dev/zero is longer than 32 MiB");
  std::string line;
  EXPECT_EQ(error_of([&] { TextInput("the prompts", "/dev/zero").next_line(line); }),
            "the prompts /dev/zero has a line of more than 32 MiB");
  EXPECT_LE(line.capacity(), 2 * TextInput::kMostBytes);
}

TEST(TextInput, WhatCannotBeReadIsNamed) {
  const TemporaryDirectory directory;
  EXPECT_EQ(error_of([] { TextInput("the prompt", "/nothing"); }),
            "cannot read the prompt /nothing: No such file or directory");
  const std::string name = directory.path().string();
  EXPECT_EQ(error_of([&] { TextInput("the prompt", name).text(); }),
            "cannot read the prompt " + name + ": Is a directory");
  std::string line;
  EXPECT_EQ(error_of([&] { TextInput("the prompt", name).next_line(line); }),
            "cannot read the prompt " + name + ": Is a directory");
}

TEST(Prompt, IsWithoutWhatAnEditorAdds) {
  EXPECT_EQ(prompt_of_bytes("a b"), "a b");
  EXPECT_EQ(prompt_of_bytes("a b\n"), "a b");
  EXPECT_EQ(prompt_of_bytes("a b\r\n"), "a b");
  EXPECT_EQ(prompt_of_bytes("\xef\xbb\xbf"
                            "a b\r\n"),
            "a b");
  EXPECT_EQ(prompt_of_bytes("a\r\nb\r\n\r\n"), "a\nb\n");  // one line break, not all
  EXPECT_EQ(prompt_of_bytes("a\rb\r"), "a\rb\r");          // no line breaks
  EXPECT_EQ(prompt_of_bytes(" a \n\n"), " a \n");
  EXPECT_EQ(prompt_of_bytes("\xef\xbb\xbf\n"), "");
  EXPECT_EQ(prompt_of_bytes(""), "");
}

TEST(Prompt, OfManyLineBreaksTakesLinearTime) {
  std::string lines;
  for (int i = 0; i < 1 << 22; ++i) lines += "\r\n";
  EXPECT_EQ(prompt_of_bytes(lines).size(), (std::size_t{1} << 22) - 1);
}

}  // namespace
}  // namespace firp
