#include "cli/terminal.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

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
}

TEST(TextPrinter, OfACharacterThatTheTextIsCutInNothingIsWritten) {
  for (const std::string half : {"\xc3", "\xe2\x82", "\xf0\x9f\x98"}) {
    testing::internal::CaptureStdout();
    TextPrinter printer(/*colour=*/false);
    printer.print("y" + half, false);
    printer.finish();
    printer.print("z", false);  // the next answer
    printer.finish();
    EXPECT_EQ(testing::internal::GetCapturedStdout(), "y\nz\n");
  }
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
