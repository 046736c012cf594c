#include "engine/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

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

TEST(ThreadPool, DivisionsCoverEverythingOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int grain : {1, 4}) {
      for (int round = 0; round < 100; ++round) {
        // With shares that are empty for some threads now and then.
        std::vector<std::vector<std::atomic<int>>> done;
        for (const int count : {97, 0, threads - 1, 36, 1 + round}) done.emplace_back(count);
        std::atomic<int> wrong{0};
        pool.run([&](int thread) {
          for (std::vector<std::atomic<int>>& units : done) {
            const int count = static_cast<int>(units.size());
            const Share own = share(count, thread, threads);
            pool.divide(thread, count, grain, [&](int begin, int end, bool goes_on) {
              wrong += begin >= end || goes_on != (own.begin <= begin && end < own.end);
              for (int unit = begin; unit < end; ++unit) ++units[unit];
            });
            pool.barrier(thread);
          }
        });
        EXPECT_EQ(wrong, 0);
        for (const std::vector<std::atomic<int>>& units : done) {
          for (const std::atomic<int>& times : units) ASSERT_EQ(times, 1);
        }
      }
    }
  }
}

TEST(ThreadPool, OthersDoWhatAHeldUpThreadHasLeft) {
  constexpr int kCount = 96;
  constexpr auto kTooLong = std::chrono::seconds(60);
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    std::atomic<int> done{0};
    int held_up_with = 0;
    pool.run([&](int thread) {
      pool.divide(thread, kCount, /*grain=*/4, [&](int begin, int end, bool) {
        if (thread == 0 && held_up_with == 0) {
          held_up_with = end - begin;
          const auto start = std::chrono::steady_clock::now();
          while (done < kCount - held_up_with &&
                 std::chrono::steady_clock::now() - start < kTooLong) {
            std::this_thread::yield();
          }
          EXPECT_EQ(done, kCount - held_up_with) << "the others wait for it";
        }
        done += end - begin;
      });
    });
    EXPECT_EQ(done, kCount);
    EXPECT_LE(held_up_with, kCount / threads / 2 + 4);
  }
}

TEST(ThreadPool, PassesLeaveOutAThreadThatIsHeldUpAndTakeItBack) {
  ThreadPool pool(3);
  constexpr int kCount = 97;
  constexpr auto kTooLong = std::chrono::seconds(120);  // on a machine that others use
  const auto start = std::chrono::steady_clock::now();
  bool fewer = false, more_again = false;
  while (!more_again && std::chrono::steady_clock::now() - start < kTooLong) {
    std::vector<std::atomic<int>> units(kCount);
    std::atomic<int> ran{0}, wrong{0};
    pool.run_on_free_cores([&](int thread) {
      ++ran;
      // A thread is held up as long as by another program's turn, or all take as long as a pass.
      const bool held_up = !fewer && thread == 2;
      std::this_thread::sleep_for(std::chrono::milliseconds(held_up ? 10 : 1));
      pool.barrier(thread);
      wrong += ran != pool.running();
      pool.divide(thread, kCount, /*grain=*/4, [&](int begin, int end, bool) {
        for (int unit = begin; unit < end; ++unit) ++units[unit];
      });
    });
    EXPECT_EQ(wrong, 0);
    for (const std::atomic<int>& times : units) ASSERT_EQ(times, 1);
    more_again = fewer && pool.running() == 3;
    if (!fewer) {
      fewer = pool.running() < 3;
      std::atomic<int> all{0};
      pool.run([&](int) { ++all; });
      EXPECT_EQ(all, 3) << "all threads, however many passes run on";
    }
  }
  EXPECT_TRUE(fewer);
  EXPECT_TRUE(more_again);
}

}  // namespace
}  // namespace firp
