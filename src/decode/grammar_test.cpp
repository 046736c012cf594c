#include "decode/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/error.h"
#include "model/test_files.h"

namespace firp {
namespace {

class GrammarTest : public testing::Test {
 protected:
  std::vector<Token> tokens(const std::string& text) const {
    return vocabulary_.tokenize(text, /*add_bos=*/false);
  }
  /// A text that the grammar must allow.
  void read(Grammar& grammar, const std::string& text) const {
    for (const Token token : tokens(text)) {
      ASSERT_TRUE(grammar.allows(token)) << text;
      grammar.accept(token);
    }
  }

  const Vocabulary vocabulary_{real_model()};
  const GrammarText digits_{.gbnf = R"(root ::= "n=" [0-9]+ ";")"};
};

TEST_F(GrammarTest, AllowsTokenByTokenWhatItMasksAtOnce) {
  Grammar grammar(vocabulary_, digits_);
  std::mt19937 random(1);
  for (int step = 0; step < 6; ++step) {
    std::vector<float> logits(vocabulary_.size(), 1.0f);
    grammar.mask(logits);
    std::vector<Token> allowed;
    for (Token token = 0; token < vocabulary_.size(); ++token) {
      if (!std::isinf(logits[token])) allowed.push_back(token);
      if (token % 97 == 0 || !std::isinf(logits[token])) {
        ASSERT_EQ(grammar.allows(token), !std::isinf(logits[token])) << token;
      }
    }
    ASSERT_FALSE(allowed.empty());
    grammar.accept(allowed[random() % allowed.size()]);
  }
}

TEST_F(GrammarTest, EndsWhereItsTextDoes) {
  Grammar grammar(vocabulary_, digits_);
  const Token end = vocabulary_.end_tokens().front();
  read(grammar, "n=12");
  EXPECT_FALSE(grammar.allows(end));
  read(grammar, ";");
  EXPECT_TRUE(grammar.allows(end));
  EXPECT_FALSE(grammar.allows(tokens("1").front()));
}

TEST_F(GrammarTest, ACopyGoesOnByItself) {
  Grammar grammar(vocabulary_, digits_);
  read(grammar, "n=1");
  Grammar copy = grammar;
  read(copy, ";");
  EXPECT_TRUE(grammar.allows(tokens("2").front()));
  EXPECT_FALSE(copy.allows(tokens("2").front()));
  copy = grammar;
  EXPECT_TRUE(copy.allows(tokens("2").front()));
}

TEST_F(GrammarTest, TellsWhatMustComeNext) {
  const GrammarText text = {.gbnf = R"(root ::= "{\"favourite colour\": " ("red" | "green") "}")"};
  Grammar grammar(vocabulary_, text);
  EXPECT_EQ(grammar.forced(32), tokens("{\"favourite colour\": "));
  EXPECT_EQ(grammar.forced(2).size(), 2u);
  read(grammar, "{\"favourite colour\": ");
  EXPECT_TRUE(grammar.forced(32).empty()) << "a choice";
  read(grammar, "g");
  EXPECT_EQ(grammar.forced(32), tokens("reen}"));
  read(grammar, "reen}");
  EXPECT_TRUE(grammar.forced(32).empty()) << "the end";
}

TEST_F(GrammarTest, ForcesNothingInsideACharacter) {
  Grammar grammar(vocabulary_, {.gbnf = "root ::= \"\u65e5\u672c\" [a-z]"});
  const Token first_byte = vocabulary_.byte_tokens()[0xE6];
  ASSERT_TRUE(grammar.allows(first_byte));
  grammar.accept(first_byte);
  EXPECT_TRUE(grammar.forced(32).empty());
}

TEST_F(GrammarTest, LeavesDraftsWithoutWhatItForbids) {
  const Grammar grammar(vocabulary_, {.gbnf = R"(root ::= "a" ("b" | "c"))"});
  const Token a = tokens("a").front(), b = tokens("b").front(), d = tokens("d").front();
  const DraftTree tree = {{.token = d, .parent = kRoot, .depth = 1},
                          {.token = a, .parent = kRoot, .depth = 1},
                          {.token = b, .parent = 0, .depth = 2},
                          {.token = d, .parent = 1, .depth = 2},
                          {.token = b, .parent = 1, .depth = 2}};
  const DraftTree kept = allowed_part(tree, grammar);
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(kept[0].token, a);
  EXPECT_EQ(kept[1].token, b);
  EXPECT_EQ(kept[1].parent, 0);
}

TEST_F(GrammarTest, ALazyOneWaitsForItsBeginning) {
  GrammarText text = {.gbnf = R"(root ::= "<call>" [0-9]+ "</call>")", .words = {"<call>"}};
  Grammar grammar(vocabulary_, text);
  EXPECT_TRUE(text.is_lazy());
  EXPECT_FALSE(grammar.holds());
  read(grammar, "Anything at all, and " + std::string(2000, 'x') + " then <call>");
  ASSERT_TRUE(grammar.holds());
  EXPECT_TRUE(grammar.allows(tokens("7").front()));
  EXPECT_FALSE(grammar.allows(tokens("x").front()));
  text.words.clear();
  text.patterns = {"^a(<call>)"};
  Grammar anchored(vocabulary_, text);
  read(anchored, "b");
  read(anchored, "a<call>");
  EXPECT_FALSE(anchored.holds()) << "not at the beginning";
  Grammar first(vocabulary_, text);
  read(first, "a<call>");
  ASSERT_TRUE(first.holds());
  EXPECT_FALSE(first.allows(tokens("x").front()));
}

TEST_F(GrammarTest, HasReadWhatTheTemplateWrote) {
  GrammarText text = digits_;
  text.read = tokens("n=");
  const Grammar grammar(vocabulary_, text);
  EXPECT_TRUE(grammar.allows(tokens("4").front()));
  EXPECT_FALSE(grammar.allows(tokens("n").front()));
}

TEST_F(GrammarTest, RefusesWhatIsNone) {
  for (const std::string& gbnf :
       {std::string("root ::= ("), std::string("leaf ::= \"a\""),
        std::string("root ::= root \"a\""), std::string("root ::= missing"),
        "root ::= " + std::string(100'000, '(')}) {
    EXPECT_THROW(Grammar(vocabulary_, {.gbnf = gbnf}), Error) << gbnf.substr(0, 40);
  }
}

}  // namespace
}  // namespace firp
