#include "engine/thread_pool.h"

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
    : arrivals_(static_cast<std::size_t>(threads)), left_(static_cast<std::size_t>(threads)) {
  // With more threads than cores the one that is waited for may need this very core.
  spin_ = threads <= usable_cores();
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread] { work_loop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
}

void ThreadPool::run(const std::function<void(int)>& work) {
  work_ = &work;
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
  work(0);
  barrier(0);
}

void ThreadPool::work_loop(int thread) {
  for (std::uint32_t done = 0;;) {
    std::uint32_t job = job_.load(std::memory_order_acquire);
    for (int spin = 0; job == done && spin_ && spin < kIdleSpins; ++spin) {
      pause();
      job = job_.load(std::memory_order_acquire);
    }
    if (job == done) {
      job_.wait(done, std::memory_order_acquire);
      continue;
    }
    if (stop_.load(std::memory_order_relaxed)) return;
    done = job;
    (*work_)(thread);
    barrier(thread);
  }
}

void ThreadPool::barrier(int thread) {
  const std::uint32_t count = arrivals_[thread].count.load(std::memory_order_relaxed) + 1;
  arrivals_[thread].count.store(count, std::memory_order_release);
  for (const Arrival& other : arrivals_) {
    // Another thread may already wait at the next barrier, so compare as a distance.
    for (int spin = 0;
         static_cast<std::int32_t>(other.count.load(std::memory_order_acquire) - count) < 0;
         ++spin) {
      if (spin_ && spin < kBarrierSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
}

Share ThreadPool::take(int owner, bool front, int count, int grain, std::uint32_t division) {
  constexpr std::uint64_t kUnits = (std::uint64_t{1} << kUnitBits) - 1;
  const std::uint64_t number = std::uint64_t{division} << 2 * kUnitBits;  // its lower bits
  const Share all = share(count, owner, size());
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
