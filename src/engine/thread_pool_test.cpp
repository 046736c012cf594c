#include "engine/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>

namespace firp {
namespace {

TEST(ThreadPool, RunsOnEveryThreadOnceAndSeesAllWrites) {
  for (const int threads : {1, 2, 4, 7}) {
    ThreadPool pool(threads);
    std::vector<int> runs(threads, 0);
    for (int round = 1; round <= 200; ++round) {
      pool.run([&](int thread) { ++runs[thread]; });
      for (const int count : runs) ASSERT_EQ(count, round);
    }
  }
}

TEST(ThreadPool, BarriersSeparatePhases) {
  for (const int threads : {2, 3, 8}) {
    ThreadPool pool(threads);
    std::vector<int> values(threads, 0);
    std::vector<int> wrong(threads, 0);
    pool.run([&](int thread) {
      for (int phase = 1; phase <= 500; ++phase) {
        values[thread] = phase;
        pool.barrier(thread);
        for (const int value : values) wrong[thread] += value != phase;
        pool.barrier(thread);
      }
    });
    for (const int count : wrong) EXPECT_EQ(count, 0);
  }
}

TEST(ThreadPool, WakesAfterSleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> ran{0};
    pool.run([&](int) { ++ran; });
    EXPECT_EQ(ran, 3);
  }
}

TEST(ThreadPool, SharesCoverEverythingOnce) {
  for (const int count : {0, 1, 5, 12, 97}) {
    for (const int threads : {1, 2, 3, 8}) {
      int next = 0;
      for (int thread = 0; thread < threads; ++thread) {
        const auto [begin, end] = share(count, thread, threads);
        EXPECT_EQ(begin, next);
        EXPECT_LE(end - begin, count / threads + 1);
        next = end;
      }
      EXPECT_EQ(next, count);
    }
  }
}

}  // namespace
}  // namespace firp
