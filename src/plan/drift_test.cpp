#include "plan/drift.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

TEST(Drift, TellsMostOfAboutAsManyRows) {
  Drift drift;
  for (int pass = 0; pass < 100; ++pass) {
    drift.pass();
    drift.observe(16, 1.5);
  }
  EXPECT_NEAR(drift.ratio(16), 1.5, 0.01);
  EXPECT_NEAR(drift.ratio(15), 1.5, 0.05);
  EXPECT_LT(drift.ratio(2), 1.3);
  EXPECT_EQ(drift.ratio(1), 1) << "a plain pass is the model's memory alone";
}

const PassCosts kCosts = {.keeps_weights = true};

void plain(Drifts& drifts, int passes, double ratio) {
  for (int pass = 0; pass < passes; ++pass)
    drifts.observe(1, /*drafted=*/false, /*plain=*/true, ratio);
}

TEST(Drifts, LearnFromPlainPassesThatHaveSettledAlone) {
  Drifts drifts(kCosts, /*follow=*/true);
  for (int pass = 0; pass < 100; ++pass) {  // as two sequences in turn, one of which drafts
    drifts.observe(4, /*drafted=*/true, /*plain=*/false, 1.2);
    plain(drifts, 1, 1.6);
  }
  EXPECT_EQ(drifts.ratio(1, false), 1);
  EXPECT_NEAR(drifts.ratio(4, true), 1.2, 0.01);
  plain(drifts, Drifts::settling(kCosts) - 1, 1.6);
  EXPECT_EQ(drifts.ratio(1, false), 1);
  plain(drifts, 100, 1.3);
  EXPECT_NEAR(drifts.ratio(1, false), 1.3, 0.01);
}

/// Drafting would look good forever where plain passes were measured in a bad moment.
TEST(Drifts, AskForPlainPassesUntilSomeHaveSettled) {
  Drifts drifts(kCosts, /*follow=*/true);
  int passes = 0;
  while (!drifts.plain_is_due()) {
    drifts.observe(4, /*drafted=*/true, /*plain=*/false, 1);
    ASSERT_LT(++passes, 1000);
  }
  EXPECT_TRUE(drifts.plain_is_unseen());
  plain(drifts, Drifts::settling(kCosts) + Drifts::kSeen - 1, 1);
  EXPECT_TRUE(drifts.plain_is_due());
  plain(drifts, 1, 1);
  EXPECT_FALSE(drifts.plain_is_due());
  EXPECT_FALSE(drifts.plain_is_unseen());
}

TEST(Drifts, WithWeightsBeyondTheCacheEveryPlainPassHasSettled) {
  Drifts drifts({.keeps_weights = false}, /*follow=*/true);
  while (!drifts.plain_is_due()) drifts.observe(4, /*drafted=*/true, /*plain=*/false, 1);
  plain(drifts, Drifts::kSeen - 1, 1.3);
  EXPECT_TRUE(drifts.plain_is_due());
  EXPECT_GT(drifts.ratio(1, false), 1.1);
  plain(drifts, 1, 1.3);
  EXPECT_FALSE(drifts.plain_is_due());
}

TEST(Drifts, OfAnImaginedMachineStayAsTheyAre) {
  Drifts drifts(kCosts, /*follow=*/false);
  plain(drifts, 1000, 3);
  for (int pass = 0; pass < 1000; ++pass) drifts.observe(4, /*drafted=*/true, /*plain=*/false, 2);
  EXPECT_EQ(drifts.ratio(1, false), 1);
  EXPECT_EQ(drifts.ratio(4, true), 1);
  EXPECT_FALSE(drifts.plain_is_due());
}

}  // namespace
}  // namespace firp
