#include "draft/ngram.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace firp {
namespace {

std::vector<Token> tokens_of(const DraftTree& path) {
  std::vector<Token> tokens;
  for (const DraftNode& node : path) tokens.push_back(node.token);
  return tokens;
}

TEST(NgramSource, GivesWhatFollowedTheLongestMatch) {
  NgramSource source;
  //                               0  1  2  3  4  5  6  7  8  9
  const std::vector<Token> text = {1, 2, 3, 4, 9, 2, 3, 5, 7, 1, 2, 3};
  // (1 2 3) stood at the beginning; (2 3) more recently, but that match is shorter.
  const DraftTree draft = source.draft(text, 4);
  EXPECT_EQ(tokens_of(draft), (std::vector<Token>{4, 9, 2, 3}));
  for (std::size_t i = 0; i < draft.size(); ++i) {
    EXPECT_EQ(draft[i].parent, static_cast<int>(i) - 1);
    EXPECT_EQ(draft[i].depth, static_cast<int>(i) + 1);
    EXPECT_LT(draft[i].log_probability, i == 0 ? 0.0f : draft[i - 1].log_probability);
  }
  EXPECT_TRUE(source.draft(std::vector<Token>{1, 2, 3}, 4).empty());
  EXPECT_TRUE(source.draft(std::vector<Token>{}, 4).empty());
}

TEST(NgramSource, FollowsATextThatGrowsAndIsCut) {
  NgramSource growing;
  std::mt19937 random(1);
  std::vector<Token> text;
  for (int i = 0; i < 300; ++i) {
    if (i == 150) text.resize(70);
    text.push_back(static_cast<Token>(random() % 5));
    EXPECT_EQ(tokens_of(growing.draft(text, 6)), tokens_of(NgramSource().draft(text, 6))) << i;
  }
}

TEST(NgramSource, LearnsHowOftenMatchesAreRight) {
  const std::vector<Token> text = {1, 2, 3, 1, 2};
  NgramSource right, wrong;
  for (int i = 0; i < 200; ++i) {
    right.draft(text, 1);
    right.observe(std::vector<Token>{3});
    wrong.draft(text, 1);
    wrong.observe(std::vector<Token>{4});
  }
  EXPECT_GT(std::exp(right.draft(text, 1).front().log_probability), 0.9);
  EXPECT_LT(std::exp(wrong.draft(text, 1).front().log_probability), 0.1);
}

TEST(Join, KeepsEveryPathOnceAndTheOrder) {
  const DraftTree tree = {{5, kRoot, 1, -0.5f}, {6, kRoot, 1, -1.0f}, {7, 0, 2, -1.5f}};
  const DraftTree path = {{6, kRoot, 1, -0.2f}, {8, 0, 2, -0.3f}, {9, 1, 3, -3.0f}};
  const DraftTree joined = join(tree, path);
  ASSERT_EQ(joined.size(), 5u);
  for (std::size_t i = 0; i < joined.size(); ++i) {
    if (i > 0) {
      EXPECT_LE(joined[i].log_probability, joined[i - 1].log_probability);
    }
    EXPECT_LT(joined[i].parent, static_cast<int>(i));
    EXPECT_EQ(joined[i].depth, joined[i].parent == kRoot ? 1 : joined[joined[i].parent].depth + 1);
  }
  EXPECT_EQ(joined[0].token, 6);
  EXPECT_FLOAT_EQ(joined[0].log_probability, -0.2f);
  EXPECT_EQ(joined[1].token, 8);
  EXPECT_EQ(joined[1].parent, 0);
  EXPECT_EQ(joined[4].token, 9);
}

}  // namespace
}  // namespace firp
