#include "plan/costs.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

TEST(PassCosts, AreInterpolatedBetweenTheRowsThatWereMeasured) {
  const PassCosts costs = {.verify_seconds = {{1, 1.0}, {5, 1.4}, {9, 3.0}}};
  EXPECT_EQ(costs.verify(1, 0), 1.0);
  EXPECT_NEAR(costs.verify(2, 0), 1.1, 1e-12);
  EXPECT_EQ(costs.verify(5, 0), 1.4);
  EXPECT_NEAR(costs.verify(6, 0), 1.8, 1e-12);
}

TEST(PassCosts, GrowWithTheRowsBeyondThem) {
  const PassCosts costs = {.verify_seconds = {{1, 1.0}, {8, 2.0}}};
  EXPECT_NEAR(costs.verify(16, 0), 4.0, 1e-12);
}

TEST(PassCosts, AreThoseOfTheFewestRowsBelow) {
  const PassCosts costs = {.verify_seconds = {{4, 1.5}, {8, 2.0}}};
  EXPECT_EQ(costs.verify(1, 0), 1.5);
}

TEST(PassCosts, GrowWithTheContextByRowAndPosition) {
  const PassCosts costs = {.verify_seconds = {{1, 1.0}, {8, 2.0}}, .position_seconds = 1e-3};
  EXPECT_NEAR(costs.verify(8, 500) - costs.verify(8, 0), 4.0, 1e-12);
  EXPECT_NEAR(costs.verify(1, 500) - costs.verify(1, 0), 0.5, 1e-12);
}

}  // namespace
}  // namespace firp
