#include "serve/outgoing_text.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

TEST(OutgoingText, SendsWholeCharacters) {
  OutgoingText text({});
  EXPECT_EQ(text.add("gr\xc3"), "gr");
  EXPECT_EQ(text.add("\xb6\xc3\x9f"), "öß");
  EXPECT_EQ(text.add("\xf0\x9f"), "");
  EXPECT_EQ(text.finish(), "") << "half a character is none";
}

TEST(OutgoingText, HoldsWhatMayBeginAStopString) {
  OutgoingText text({"###", "STOP"});
  EXPECT_EQ(text.add("a #"), "a ");
  EXPECT_EQ(text.add("#b"), "##b") << "it was none";
  EXPECT_EQ(text.add(" ST"), " ");
  EXPECT_FALSE(text.stopped());
  EXPECT_EQ(text.add("OP and more"), "");
  EXPECT_TRUE(text.stopped());
  EXPECT_EQ(text.add("nor this"), "");
  EXPECT_EQ(text.finish(), "");
}

TEST(OutgoingText, EndsAtTheFirstOfSeveralStopStrings) {
  OutgoingText text({"late", "soon"});
  EXPECT_EQ(text.add("x soon y late"), "x ");
  EXPECT_TRUE(text.stopped());
  OutgoingText nested({"ab", "aab"});
  EXPECT_EQ(nested.add("a"), "");
  EXPECT_EQ(nested.add("ab"), "") << "aab begins before ab";
  EXPECT_TRUE(nested.stopped());
}

/// Stop strings that look like themselves, over and over.
TEST(OutgoingText, FindsStopStringsThatRepeatThemselves) {
  OutgoingText text({"aab", "abab#"});
  EXPECT_EQ(text.add("aaaa"), "aa") << "the last two may begin aab";
  EXPECT_EQ(text.add("b"), "");
  EXPECT_TRUE(text.stopped());
  OutgoingText other({"abab#"});
  EXPECT_EQ(other.add("ababab"), "ab");
  EXPECT_EQ(other.add("#c"), "");
  EXPECT_TRUE(other.stopped());
}

/// However the text is cut into tokens, the same is sent.
TEST(OutgoingText, DoesNotDependOnTheTokens) {
  const std::string whole = "Grüße, 12 34 121 3 <end> tail";
  for (const std::vector<std::string>& stops :
       std::vector<std::vector<std::string>>{{}, {"<end>"}, {"121 3"}, {"12 1", "nd>"}}) {
    OutgoingText at_once(stops);
    std::string expected = at_once.add(whole);
    expected += at_once.finish();
    for (std::size_t step = 1; step < 7; ++step) {
      OutgoingText text(stops);
      std::string sent;
      for (std::size_t at = 0; at < whole.size(); at += step)
        sent += text.add(whole.substr(at, step));
      sent += text.finish();
      EXPECT_EQ(sent, expected) << step;
      EXPECT_EQ(text.stopped(), at_once.stopped());
    }
  }
}

}  // namespace
}  // namespace firp
