#pragma once

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>

#include "base/error.h"

namespace firp {

/// Something large that is let go when nobody has used it for a while, and made again for who wants
/// it next. Threads may call it at once.
template <typename T>
class OnDemand {
 public:
  using Clock = std::chrono::steady_clock;

  /// `idle`: how long nobody uses it before it goes; none: it stays. `make` makes it anew; `let_go`
  /// has it last, and ends it: until then nobody else can use it, nor have another one made.
  OnDemand(std::unique_ptr<T> first, std::optional<Clock::duration> idle,
           std::function<std::unique_ptr<T>()> make, std::function<void(std::unique_ptr<T>)> let_go)
      : make_(std::move(make)), let_go_(std::move(let_go)), there_(std::move(first)) {
    if (!idle) return;
    thread_ =
        std::jthread([this, idle = *idle](const std::stop_token& ended) { watch(idle, ended); });
  }
  OnDemand(const OnDemand&) = delete;
  OnDemand& operator=(const OnDemand&) = delete;

  /// It stays while the result lives, which must end before this object. The calling thread makes
  /// it where it is not there; others who want it meanwhile wait, and get what making it throws,
  /// too. They look now and then whether they are unwanted, and then throw Cancelled.
  std::shared_ptr<T> use(const std::function<bool()>& is_unwanted) {
    std::unique_lock lock(mutex_);
    while (!there_) {
      if (attempt_) {
        wait_for_attempt(lock, is_unwanted);
      } else {
        attempt(lock);
      }
    }
    return shared(/*counts=*/true);
  }

  /// The same where it is there; else null. It counts as no use: whoever only looks keeps nobody
  /// from letting it go later.
  std::shared_ptr<T> look() {
    const std::lock_guard lock(mutex_);
    return there_ ? shared(/*counts=*/false) : nullptr;
  }

 private:
  struct Attempt {
    bool done = false;
    std::exception_ptr error;
  };

  void attempt(std::unique_lock<std::mutex>& lock) {
    const auto mine = attempt_ = std::make_shared<Attempt>();
    lock.unlock();
    std::unique_ptr<T> made;
    try {
      made = make_();
    } catch (...) {
      mine->error = std::current_exception();
    }
    lock.lock();
    there_ = std::move(made);
    last_used_ = Clock::now();
    mine->done = true;
    attempt_.reset();
    changed_.notify_all();
    if (mine->error) std::rethrow_exception(mine->error);
  }

  void wait_for_attempt(std::unique_lock<std::mutex>& lock,
                        const std::function<bool()>& is_unwanted) {
    constexpr auto kGlance = std::chrono::milliseconds(50);
    const auto others = attempt_;
    while (!changed_.wait_for(lock, kGlance, [&] { return others->done; })) {
      if (is_unwanted()) throw Cancelled();
    }
    if (others->error) std::rethrow_exception(others->error);
  }

  std::shared_ptr<T> shared(bool counts) {
    ++users_;
    return {there_.get(), [this, counts](T*) {
              const std::lock_guard lock(mutex_);
              --users_;
              if (counts) last_used_ = Clock::now();
              changed_.notify_all();
            }};
  }

  void watch(Clock::duration idle, const std::stop_token& ended) {
    std::unique_lock lock(mutex_);
    while (!ended.stop_requested()) {
      if (!there_ || users_ > 0) {
        changed_.wait(lock, ended, [this] { return there_ && users_ == 0; });
      } else if (const auto due = last_used_ + idle; Clock::now() < due) {
        changed_.wait_until(lock, ended, due, [this] { return users_ > 0; });
      } else {
        let_go_(std::move(there_));
      }
    }
  }

  const std::function<std::unique_ptr<T>()> make_;
  const std::function<void(std::unique_ptr<T>)> let_go_;
  std::mutex mutex_;  ///< of all that follows
  std::condition_variable_any changed_;
  std::unique_ptr<T> there_;
  std::shared_ptr<Attempt> attempt_;  ///< to make it; null: nobody does
  int users_ = 0;
  Clock::time_point last_used_ = Clock::now();
  std::jthread thread_;  ///< the last member: it uses the others
};

}  // namespace firp
