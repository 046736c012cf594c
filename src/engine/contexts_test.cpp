#include "engine/contexts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace firp {
namespace {

void append(Contexts& contexts, int sequence, const std::vector<Token>& tokens) {
  for (const Token token : tokens) contexts.append(sequence, token);
}

std::vector<Token> tokens_of(const Contexts& contexts, int sequence) {
  const std::span<const Token> tokens = contexts.tokens(sequence);
  return {tokens.begin(), tokens.end()};
}

TEST(Contexts, NumbersAreReusedLowestFirst) {
  Contexts contexts;
  for (int sequence = 0; sequence < 3; ++sequence) EXPECT_EQ(contexts.add(), sequence);
  append(contexts, 0, {1, 2});
  contexts.remove(1);
  contexts.remove(0);
  EXPECT_FALSE(contexts.is_live(0));
  EXPECT_EQ(contexts.add(), 0);
  EXPECT_TRUE(contexts.is_live(0));
  EXPECT_EQ(contexts.length(0), 0);
  EXPECT_FALSE(contexts.is_live(-1));
  EXPECT_FALSE(contexts.is_live(3));
}

TEST(Contexts, WhatIsHeldInCommonCountsOnce) {
  Contexts contexts;
  const int a = contexts.add(), b = contexts.add();
  append(contexts, a, {1, 2, 3, 4});
  contexts.share(a, b, 3);
  append(contexts, b, {4});  // equal tokens that each has for itself
  EXPECT_EQ(contexts.held(), 5);
  EXPECT_EQ(contexts.held_by_live(), 5);
  EXPECT_FALSE(contexts.retire(a)) << "b holds all that it holds";
  EXPECT_EQ(contexts.held(), 4);

  const int c = contexts.add();
  contexts.share(b, c, 2);
  append(contexts, c, {9});
  EXPECT_TRUE(contexts.retire(c));
  EXPECT_EQ(contexts.held(), 5);
  EXPECT_EQ(contexts.held_by_live(), 4);
  EXPECT_TRUE(contexts.retire(b));
  EXPECT_EQ(contexts.held(), 5);
  EXPECT_EQ(contexts.held_by_live(), 0);
  contexts.remove(b);
  EXPECT_EQ(contexts.held(), 3);
}

TEST(Contexts, FindGivesTheLongestBeginningThatAnotherHolds) {
  Contexts contexts;
  const int a = contexts.add(), b = contexts.add(), c = contexts.add();
  append(contexts, a, {1, 2, 3});
  append(contexts, b, {1, 2, 3, 4, 9});
  append(contexts, c, {1, 2, 3, 4, 5, 6});
  const std::vector<Token> wanted = {1, 2, 3, 4, 5};
  EXPECT_EQ(contexts.find(wanted, a).sequence, c);
  EXPECT_EQ(contexts.find(wanted, a).length, 5);
  EXPECT_EQ(contexts.find(wanted, c).sequence, b);
  EXPECT_EQ(contexts.find(wanted, c).length, 4);
  ASSERT_TRUE(contexts.retire(b));
  EXPECT_EQ(contexts.find(wanted, c).sequence, b) << "a retired one is found, too";
  EXPECT_EQ(contexts.find(wanted, -1, /*retired_alone=*/true).sequence, b);
  EXPECT_EQ(contexts.find(wanted, -1, /*retired_alone=*/true).length, 4);
  EXPECT_EQ(contexts.find(wanted, b, /*retired_alone=*/true).length, 0);
  contexts.remove(b);
  EXPECT_EQ(contexts.find(wanted, c).sequence, a);
  EXPECT_EQ(contexts.find(std::vector<Token>{2, 3}, -1).length, 0);
  EXPECT_EQ(contexts.find({}, -1).length, 0);
}

/// The same, without a thought for speed: positions are objects that are held by name.
class NaiveContexts {
 public:
  struct Sequence {
    bool live = true;
    int used = 0;
    std::vector<std::pair<Token, int>> positions;  ///< and the name of each
  };

  std::vector<Token> tokens(int sequence) const {
    std::vector<Token> tokens;
    for (const auto& [token, name] : sequences.at(sequence).positions) tokens.push_back(token);
    return tokens;
  }
  int held(bool by_live_alone) const {
    std::set<int> names;
    for (const auto& [number, sequence] : sequences) {
      if (by_live_alone && !sequence.live) continue;
      for (const auto& [token, name] : sequence.positions) names.insert(name);
    }
    return static_cast<int>(names.size());
  }
  int longest_beginning(std::span<const Token> wanted, int other_than) const {
    int longest = 0;
    for (const auto& [number, sequence] : sequences) {
      if (number != other_than) longest = std::max(longest, common(number, wanted));
    }
    return longest;
  }
  int common(int sequence, std::span<const Token> wanted) const {
    const std::vector<Token> held = tokens(sequence);
    int length = 0;
    while (length < std::ssize(held) && length < std::ssize(wanted) &&
           held[length] == wanted[length]) {
      ++length;
    }
    return length;
  }
  std::optional<int> oldest_retired() const {
    std::optional<int> oldest;
    for (const auto& [number, sequence] : sequences) {
      if (sequence.live) continue;
      if (!oldest || sequence.used < sequences.at(*oldest).used) oldest = number;
    }
    return oldest;
  }

  std::map<int, Sequence> sequences;
  int names_given = 0, uses = 0;
};

TEST(Contexts, CountAndFindAsANaiveModelDoes) {
  std::mt19937 random(1);
  const auto below = [&](std::size_t limit) { return static_cast<int>(random() % limit); };
  Contexts contexts;
  NaiveContexts naive;
  int retired = 0, not_retired = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::vector<int> live, all;
    for (const auto& [number, sequence] : naive.sequences) {
      all.push_back(number);
      if (sequence.live) live.push_back(number);
    }
    const int sequence = live.empty() ? -1 : live[below(live.size())];
    const int operation = below(12);
    if (live.empty() || (operation == 0 && all.size() < 8)) {
      const int number = contexts.add();
      ASSERT_FALSE(naive.sequences.contains(number));
      naive.sequences[number].used = ++naive.uses;
    } else if (operation <= 4) {  // of two tokens, so that some have the same without sharing
      for (int count = below(4); count-- > 0;) {
        const Token token = below(2);
        contexts.append(sequence, token);
        naive.sequences[sequence].positions.push_back({token, naive.names_given++});
      }
    } else if (operation <= 6) {
      const int length = below(contexts.length(sequence) + 2);
      contexts.truncate(sequence, length);
      auto& positions = naive.sequences[sequence].positions;
      positions.resize(std::min(positions.size(), static_cast<std::size_t>(length)));
    } else if (operation <= 9) {
      const int from = all[below(all.size())];
      if (from == sequence) continue;
      const int length = below(contexts.length(from) + 1);
      contexts.share(from, sequence, length);
      NaiveContexts::Sequence& source = naive.sequences[from];
      source.used = ++naive.uses;
      naive.sequences[sequence].positions.assign(source.positions.begin(),
                                                 source.positions.begin() + length);
    } else if (operation == 10) {
      const std::vector<Token> tokens = naive.tokens(sequence);
      const bool stays = naive.longest_beginning(tokens, sequence) < std::ssize(tokens);
      ASSERT_EQ(contexts.retire(sequence), stays);
      ++(stays ? retired : not_retired);
      if (stays) {
        naive.sequences[sequence].live = false;
        naive.sequences[sequence].used = ++naive.uses;
      } else {
        naive.sequences.erase(sequence);
      }
    } else {
      const int removed = all[below(all.size())];
      contexts.remove(removed);
      naive.sequences.erase(removed);
    }

    ASSERT_EQ(contexts.held(), naive.held(/*by_live_alone=*/false)) << i;
    ASSERT_EQ(contexts.held_by_live(), naive.held(/*by_live_alone=*/true)) << i;
    ASSERT_EQ(contexts.oldest_retired(), naive.oldest_retired()) << i;
    for (int number = 0; number < 9; ++number) {
      const auto expected = naive.sequences.find(number);
      const bool present = expected != naive.sequences.end();
      ASSERT_EQ(contexts.is_live(number), present && expected->second.live);
      if (present) {
        ASSERT_EQ(tokens_of(contexts, number), naive.tokens(number));
      }
    }
    std::vector<Token> wanted(below(12));
    for (Token& token : wanted) token = below(2);
    const int other_than = below(9) - 1;
    const Contexts::Match match = contexts.find(wanted, other_than);
    ASSERT_EQ(match.length, naive.longest_beginning(wanted, other_than));
    if (match.length > 0) {
      ASSERT_NE(match.sequence, other_than);
      ASSERT_EQ(naive.common(match.sequence, wanted), match.length);
    }
  }
  EXPECT_GT(retired, 100);
  EXPECT_GT(not_retired, 100);
}

}  // namespace
}  // namespace firp
