#include "engine/thread_count.h"

#include <gtest/gtest.h>

namespace firp {
namespace {

/// Runs of 2 ms for some seconds, in which threads above `cores` (but the first) lack a core for
/// most of the time. The share of the runs that had more threads than cores.
class Machine {
 public:
  explicit Machine(int most) : count_(most) {}

  double run(double seconds, int cores) {
    int runs = 0, too_many = 0;
    for (const double end = now_ + seconds; now_ < end; ++runs) {
      constexpr double kRunSeconds = 0.002;
      const int without = count_.threads() > cores ? count_.threads() - cores : 0;
      too_many += without > 0;
      now_ += kRunSeconds;
      count_.observe(now_, kRunSeconds, 0.7 * without * kRunSeconds);
    }
    return static_cast<double>(too_many) / runs;
  }
  int threads() const { return count_.threads(); }

 private:
  ThreadCount count_;
  double now_ = 100;
};

TEST(ThreadCount, IsAllThreadsOnAQuietMachine) {
  ThreadCount count(4);
  for (int run = 0; run < 10'000; ++run) {
    count.observe(0.002 * run, 0.002, 0.00004);  // 2 %: what a system's own work takes
    ASSERT_EQ(count.threads(), 4);
  }
}

TEST(ThreadCount, IsWhatOtherProgramsLeave) {
  for (const int most : {2, 4, 16}) {
    for (int cores = 1; cores < most; ++cores) {
      Machine machine(most);
      machine.run(1, cores);
      // What it costs to try whether there is room again.
      EXPECT_LT(machine.run(60, cores), 0.03);
    }
  }
}

TEST(ThreadCount, ComesBackWhenTheyAreGone) {
  Machine machine(8);
  machine.run(60, 3);
  machine.run(6, 8);
  EXPECT_EQ(machine.threads(), 8);
}

TEST(ThreadCount, IsNeverLessThanOne) {
  Machine machine(3);
  machine.run(5, 0);
  EXPECT_EQ(machine.threads(), 1);
}

}  // namespace
}  // namespace firp
