#include "engine/thread_pool.h"

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

ThreadPool::ThreadPool(int threads) : arrivals_(static_cast<std::size_t>(threads)) {
  // With more threads than cores the one that is waited for may need this very core.
  spin_ = threads <= static_cast<int>(std::thread::hardware_concurrency());
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

}  // namespace firp
