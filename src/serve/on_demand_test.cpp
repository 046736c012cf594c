#include "serve/on_demand.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <string>
#include <thread>
#include <vector>

namespace firp {
namespace {

using std::chrono::milliseconds;

const auto kWanted = [] { return false; };

template <typename Condition>
bool comes(const Condition& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

/// Numbers, each one more than the last one.
struct Numbers {
  explicit Numbers(std::optional<milliseconds> idle)
      : number(
            std::make_unique<int>(0), idle,
            [this] {
              if (make_first) make_first();
              return std::make_unique<int>(++made);
            },
            [this](std::unique_ptr<int> old) { gone = *old; }) {}

  std::function<void()> make_first;
  std::atomic<int> made = 0, gone = -1;
  OnDemand<int> number;
};

TEST(OnDemand, GoesWhenItIsIdleAndIsMadeAgain) {
  Numbers numbers(milliseconds(5));
  ASSERT_TRUE(comes([&] { return numbers.gone == 0; }));
  EXPECT_EQ(numbers.number.look(), nullptr);
  EXPECT_EQ(numbers.made, 0) << "a look makes none";
  EXPECT_EQ(*numbers.number.use(kWanted), 1);
  ASSERT_TRUE(comes([&] { return numbers.gone == 1; }));
  EXPECT_EQ(*numbers.number.use(kWanted), 2);
}

TEST(OnDemand, StaysWhileItIsUsed) {
  Numbers numbers(milliseconds(5));
  {
    const std::shared_ptr<int> used = numbers.number.use(kWanted);
    const int mine = *used;
    std::this_thread::sleep_for(milliseconds(50));
    EXPECT_LT(numbers.gone, mine);
    EXPECT_EQ(numbers.number.look(), used);
    EXPECT_EQ(numbers.number.use(kWanted), used);
  }
  EXPECT_TRUE(comes([&] { return numbers.number.look() == nullptr; }));
}

TEST(OnDemand, WhoOnlyLooksKeepsItFromNothing) {
  Numbers numbers(milliseconds(30));
  EXPECT_TRUE(comes([&] { return numbers.number.look() == nullptr; }));
}

TEST(OnDemand, StaysForGoodWithoutATime) {
  Numbers numbers(std::nullopt);
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(*numbers.number.use(kWanted), 0);
}

TEST(OnDemand, IsMadeOnceForAllWhoWait) {
  Numbers numbers(milliseconds(300));
  std::atomic<bool> began = false, may_go_on = false;
  numbers.make_first = [&] {
    began = true;
    comes([&] { return may_go_on.load(); });
  };
  ASSERT_TRUE(comes([&] { return numbers.gone == 0; }));
  std::vector<std::future<int>> all;
  for (int i = 0; i < 4; ++i) {
    all.push_back(std::async(std::launch::async, [&] { return *numbers.number.use(kWanted); }));
  }
  ASSERT_TRUE(comes([&] { return began.load(); }));
  EXPECT_THROW(numbers.number.use([] { return true; }), Cancelled) << "who waits may leave";
  may_go_on = true;
  for (std::future<int>& each : all) EXPECT_EQ(each.get(), 1);
}

TEST(OnDemand, WhatMakingThrowsIsForAllWhoWaitAndTheNextOneTriesAgain) {
  Numbers numbers(milliseconds(100));
  std::atomic<int> tries = 0;
  std::atomic<bool> another_waits = false;
  numbers.make_first = [&] {
    if (++tries > 1) return;
    comes([&] { return another_waits.load(); });
    throw Error("no memory");
  };
  ASSERT_TRUE(comes([&] { return numbers.gone == 0; }));
  const auto problem = [&]() -> std::string {
    try {
      numbers.number.use([&] {
        another_waits = true;
        return false;
      });
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  auto first = std::async(std::launch::async, problem);
  ASSERT_TRUE(comes([&] { return tries == 1; }));
  auto second = std::async(std::launch::async, problem);
  EXPECT_EQ(first.get(), "no memory");
  EXPECT_EQ(second.get(), "no memory");
  EXPECT_EQ(*numbers.number.use(kWanted), 1);
}

}  // namespace
}  // namespace firp
