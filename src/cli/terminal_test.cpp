#include "cli/terminal.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

TEST(UnfinishedUtf8, HoldsTheBytesThatBeginACharacter) {
  EXPECT_EQ(unfinished_utf8(""), 0u);
  EXPECT_EQ(unfinished_utf8("abc"), 0u);
  const std::string two = "\xc3\xa9";
  const std::string three = "\xe2\x82\xac";
  const std::string four = "\xf0\x9f\x98\x80";
  for (const std::string& character : {two, three, four}) {
    EXPECT_EQ(unfinished_utf8(character), 0u);
    for (std::size_t cut = 1; cut < character.size(); ++cut) {
      EXPECT_EQ(unfinished_utf8(two + character.substr(0, cut)), cut);
      EXPECT_EQ(unfinished_utf8(character.substr(0, cut)), cut);
    }
  }
}

TEST(UnfinishedUtf8, NeverWaitsForWhatCannotBecomeACharacter) {
  EXPECT_EQ(unfinished_utf8("\x80"), 0u);
  EXPECT_EQ(unfinished_utf8("\x80\x80\x80\x80"), 0u);
  EXPECT_EQ(unfinished_utf8("\xc3\xa9\x80"), 0u);
}

TEST(TextPrinter, WritesWholeCharactersAndOneLineBreak) {
  testing::internal::CaptureStdout();
  TextPrinter printer(/*colour=*/false);
  printer.print("caf\xc3", false);
  std::string seen = testing::internal::GetCapturedStdout();
  EXPECT_EQ(seen, "caf");
  testing::internal::CaptureStdout();
  printer.print("\xa9", true);
  printer.finish();
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "\xc3\xa9\n");
  testing::internal::CaptureStdout();
  printer.print("x\n", false);
  printer.finish();
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "x\n");
  testing::internal::CaptureStdout();
  printer.print("y\xc3", false);  // an answer that was cut
  printer.finish();
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "y\xc3\n");
}

TEST(TextPrinter, ColoursDraftedTokens) {
  testing::internal::CaptureStdout();
  TextPrinter printer(/*colour=*/true);
  printer.print("a", false);
  printer.print("b", true);
  printer.finish();
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            std::string("a") + kDraftedColour + "b" + kPlainColour + "\n");
}

TEST(Duration, ReadsAsPeopleWriteIt) {
  EXPECT_EQ(duration(0), "0:00");
  EXPECT_EQ(duration(59.6), "1:00");
  EXPECT_EQ(duration(75), "1:15");
  EXPECT_EQ(duration(3725), "1:02:05");
}

}  // namespace
}  // namespace firp
