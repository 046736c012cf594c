#include "plan/reading_pace.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

/// Passes of a machine that takes `base` seconds and `row` more for each row: so many with two rows
/// that decode, and prompts as the pace says or, with none to read, none.
void run(ReadingPace& pace, int passes, double base, double row, bool reads) {
  for (int i = 0; i < passes; ++i) {
    const int reading = reads ? pace.rows() : 0;
    pace.observe(2 + reading, reading, base + row * (2 + reading));
  }
}

TEST(ReadingPace, BeginsWithFewRows) {
  ReadingPace pace;
  EXPECT_GT(pace.rows(), 8);
  EXPECT_LT(pace.rows(), 100);
  run(pace, 10, 1e-3, 1e-3, /*reads=*/false);
  EXPECT_EQ(pace.rows(), ReadingPace().rows()) << "what rows take is not known by that";
}

TEST(ReadingPace, PassesWithPromptsTakeABoundedTime) {
  for (const double row : {1e-5, 1e-4, 1e-3, 1e-2}) {
    ReadingPace pace;
    run(pace, 10, 1e-3, row, /*reads=*/false);
    run(pace, 100, 1e-3, row, /*reads=*/true);
    const double seconds = 1e-3 + row * (2 + pace.rows());
    EXPECT_GT(seconds, 0.05) << row;
    EXPECT_LT(seconds, 0.15) << row;
  }
}

TEST(ReadingPace, WherePassesTakeLongReadingGetsOn) {
  ReadingPace pace;
  run(pace, 10, 0.5, 1e-2, /*reads=*/false);
  run(pace, 100, 0.5, 1e-2, /*reads=*/true);
  EXPECT_GT(pace.rows(), 40) << "as much time again as decoding takes";
  EXPECT_LT(pace.rows(), 110);
}

TEST(ReadingPace, IsNeverLessThanARow) {
  ReadingPace pace;
  run(pace, 100, 0, 10, /*reads=*/true);
  EXPECT_EQ(pace.rows(), 1);
}

/// As the first pass may be, which reads a model from disk or wakes a GPU up.
TEST(ReadingPace, RecoversFromAPassThatTookLong) {
  ReadingPace pace;
  run(pace, 10, 1e-3, 1e-3, /*reads=*/false);
  pace.observe(34, 32, 3);
  EXPECT_LT(pace.rows(), 8);
  run(pace, 60, 1e-3, 1e-3, /*reads=*/true);
  EXPECT_GT(pace.rows(), 50);
}

}  // namespace
}  // namespace firp
