#include "engine/thread_pool.h"

#include "base/clock.h"
#include "model/usable_cores.h"

namespace firp {
namespace {

// A pause is some 40 cycles. Threads of a pass are at most some microseconds apart, unless another
// program has taken a core; between two passes there is sampling and drafting.
constexpr int kBarrierSpins = 2000;
constexpr int kIdleSpins = 20000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : arrivals_(static_cast<std::size_t>(threads)),
      left_(static_cast<std::size_t>(threads)),
      jobs_(static_cast<std::size_t>(threads)),
      free_(threads) {
  // With more threads than cores the one that is waited for may need this very core.
  spin_ = threads <= usable_cores();
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { work_loop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  for (Job& job : jobs_) {
    job.number.fetch_add(1, std::memory_order_release);
    job.number.notify_one();
  }
}

void ThreadPool::run_on(int threads, const std::function<void(int)>& work) {
  running_ = threads;
  work_ = &work;
  first_arrival_ = arrivals_[0].count.load(std::memory_order_relaxed);
  first_division_ = left_[0].division;
  arrivals_[0].threads = threads;
  for (int thread = 1; thread < threads; ++thread) {
    jobs_[thread].number.fetch_add(1, std::memory_order_release);
    jobs_[thread].number.notify_one();
  }
  work(0);
  barrier(0);
}

void ThreadPool::run_on_free_cores(const std::function<void(int)>& work) {
  const Stopwatch watch;
  run_on(free_.now(), work);
  double waited_seconds = 0;
  for (int thread = 0; thread < running_; ++thread) {
    waited_seconds += arrivals_[thread].waited_seconds.exchange(0, std::memory_order_relaxed);
  }
  free_.observe(watch.seconds(), waited_seconds);
}

void ThreadPool::work_loop(int thread) {
  std::atomic<std::uint32_t>& number = jobs_[thread].number;
  for (std::uint32_t done = 0;;) {
    std::uint32_t job = number.load(std::memory_order_acquire);
    for (int spin = 0; job == done && spin_ && spin < kIdleSpins; ++spin) {
      pause();
      job = number.load(std::memory_order_acquire);
    }
    if (job == done) {
      number.wait(done, std::memory_order_acquire);
      continue;
    }
    if (stop_.load(std::memory_order_relaxed)) return;
    done = job;
    arrivals_[thread].threads = running_;
    arrivals_[thread].count.store(first_arrival_, std::memory_order_relaxed);
    left_[thread].division = first_division_;
    (*work_)(thread);
    barrier(thread);
  }
}

void ThreadPool::barrier(int thread) {
  Arrival& own = arrivals_[thread];
  const std::uint32_t count = own.count.load(std::memory_order_relaxed) + 1;
  own.count.store(count, std::memory_order_release);
  double since = 0;  // the wait became a long one
  for (int i = 0; i < own.threads; ++i) {
    // Another thread may already wait at the next barrier, so compare as a distance.
    for (int spin = 0;
         static_cast<std::int32_t>(arrivals_[i].count.load(std::memory_order_acquire) - count) < 0;
         ++spin) {
      if (spin_ && spin < kBarrierSpins) {
        pause();
      } else {
        if (since == 0) since = now_seconds();
        std::this_thread::yield();
      }
    }
  }
  if (since != 0) {
    own.waited_seconds.fetch_add(now_seconds() - since, std::memory_order_relaxed);
  }
}

Share ThreadPool::take(int owner, bool front, int count, int grain, std::uint32_t division) {
  constexpr std::uint64_t kUnits = (std::uint64_t{1} << kUnitBits) - 1;
  const std::uint64_t number = std::uint64_t{division} << 2 * kUnitBits;  // its lower bits
  const Share all = share(count, owner, running_);
  std::atomic<std::uint64_t>& word = left_[owner].word;
  // What the runs write is seen behind the next barrier: this word need order nothing.
  std::uint64_t seen = word.load(std::memory_order_relaxed);
  for (;;) {
    const bool untouched = seen >> 2 * kUnitBits != number >> 2 * kUnitBits;
    const int begin = untouched ? 0 : static_cast<int>(seen >> kUnitBits & kUnits);
    const int end = untouched ? all.end - all.begin : static_cast<int>(seen & kUnits);
    if (begin == end) {
      // Nobody takes from an empty share; so that no number is ever taken for one long gone.
      if (untouched && front) word.store(number, std::memory_order_relaxed);
      return {0, 0};
    }
    const int half = (end - begin + 1) / 2;
    const int taken = std::min(end - begin, (half + grain - 1) / grain * grain);
    const int new_begin = front ? begin + taken : begin;
    const int new_end = front ? end : end - taken;
    const std::uint64_t left = number | static_cast<std::uint64_t>(new_begin) << kUnitBits |
                               static_cast<std::uint64_t>(new_end);
    if (word.compare_exchange_weak(seen, left, std::memory_order_relaxed)) {
      const int first = all.begin + (front ? begin : new_end);
      return {first, first + taken};
    }
  }
}

}  // namespace firp
