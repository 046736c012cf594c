#include "engine/thread_count.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace firp {
namespace {

/// Passes of 2 ms of one thread's work on a machine some of whose cores are taken.
struct Machine {
  int cores;
  int taken = 0;

  /// Runs a pass. Threads without a core of their own share one with another program: the pass
  /// takes twice as long as it would on that thread's share, and all others wait for the half.
  double pass(ThreadCount& count) const {
    const int threads = count.now();
    const double work = 0.002 * cores / threads;
    const bool shares = threads > cores - taken;
    const double seconds = shares ? 2 * work * threads / std::max(1, threads - 1) : work;
    const double waited_seconds = shares ? 0.6 * seconds * (threads - 1) : 0;
    count.observe(seconds, waited_seconds);
    return seconds;
  }

  /// Passes for so many seconds; how many.
  int passes_in(double seconds, ThreadCount& count) const {
    int passes = 0;
    for (double done = 0; done < seconds; ++passes) done += pass(count);
    return passes;
  }
};

TEST(ThreadCount, IsTheMostWhereNothingElseRuns) {
  for (const int cores : {1, 2, 8}) {
    ThreadCount count(cores);
    Machine{.cores = cores}.passes_in(30, count);
    EXPECT_EQ(count.now(), cores);
  }
}

TEST(ThreadCount, ShortWaitsChangeNothing) {
  ThreadCount count(2);
  for (int i = 0; i < 10000; ++i) {
    // An interrupt now and then, and once in a while a whole turn of another program.
    count.observe(i % 100 == 0 ? 0.006 : 0.002, i % 100 == 0 ? 0.004 : 0.0001);
    ASSERT_EQ(count.now(), 2);
  }
}

TEST(ThreadCount, OneSlowPassChangesNothing) {
  ThreadCount count(2);
  count.observe(0.060, 0.055);  // the first, while both threads share a core
  for (int i = 0; i < 100; ++i) {
    count.observe(0.002, 0);
    ASSERT_EQ(count.now(), 2);
  }
}

TEST(ThreadCount, LeavesTakenCoresToOtherPrograms) {
  for (const int taken : {1, 3}) {
    const Machine busy{.cores = 4, .taken = taken};
    ThreadCount count(4);
    busy.passes_in(1, count);
    EXPECT_EQ(count.now(), 4 - taken);
    // Trials cost little: against the best number, which nobody changes.
    const double best_seconds = 0.002 * 4 / (4 - taken);
    EXPECT_GE(busy.passes_in(60, count), 0.95 * 60 / best_seconds);
  }
}

TEST(ThreadCount, TakesThemBackWhenTheyAreFree) {
  ThreadCount count(4);
  Machine{.cores = 4, .taken = 3}.passes_in(60, count);
  ASSERT_LE(count.now(), 2);
  Machine{.cores = 4}.passes_in(5, count);
  EXPECT_EQ(count.now(), 4);
}

}  // namespace
}  // namespace firp
