#include "engine/thread_pool.h"

#include <chrono>
#include <ctime>

#include "base/clock.h"
#include "model/usable_cores.h"

namespace firp {
namespace {

// A pause is some 40 cycles. Threads of a pass are at most some microseconds apart, unless another
// program has taken a core; between two passes there is sampling and drafting.
constexpr int kBarrierSpins = 2000;
constexpr int kIdleSpins = 20000;
// Then the core is given away: only to an idle core does the system bring the thread that is waited
// for, where that stands in line after another program.
constexpr std::chrono::microseconds kNap{20};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Seconds that this thread has had a core.
double core_seconds() {
  std::timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

ThreadPool::ThreadPool(int threads, Runs runs)
    : workers_(static_cast<std::size_t>(threads)),
      left_(static_cast<std::size_t>(threads)),
      runs_(runs),
      count_(threads),
      running_(threads) {
  // With more threads than cores the one that is waited for may need this very core.
  spin_ = threads <= usable_cores();
  for (int thread = 1; thread < threads; ++thread) {
    threads_.emplace_back([this, thread] { work_loop(thread); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  for (Worker& worker : workers_) {
    worker.job.fetch_add(1, std::memory_order_release);
    worker.job.notify_one();
  }
}

void ThreadPool::run(const std::function<void(int)>& work) {
  if (running() != count_.threads()) choose_threads();
  work_ = &work;
  ++job_;
  const int threads = running();
  for (int thread = 1; thread < threads; ++thread) {
    workers_[thread].job.store(job_, std::memory_order_release);
    workers_[thread].job.notify_one();
  }
  const double begin = now_seconds();
  work_on(0);
  if (runs_ == Runs::kAllThreads) return;
  const double end = now_seconds();
  double lost_seconds = 0;
  for (int thread = 0; thread < threads; ++thread) lost_seconds += workers_[thread].lost_seconds;
  count_.observe(end, end - begin, lost_seconds);
}

void ThreadPool::choose_threads() {
  // Threads that rejoin have stood still: they take up the others' counts.
  for (int thread = running(); thread < count_.threads(); ++thread) {
    workers_[thread].barriers.store(workers_[0].barriers.load(std::memory_order_relaxed),
                                    std::memory_order_relaxed);
    left_[thread].division = left_[0].division;
    left_[thread].word.store(std::uint64_t{left_[0].division} << 2 * kUnitBits,
                             std::memory_order_relaxed);
  }
  running_.store(count_.threads(), std::memory_order_relaxed);
}

void ThreadPool::work_loop(int thread) {
  std::atomic<std::uint32_t>& wanted = workers_[thread].job;
  for (std::uint32_t done = 0;;) {
    std::uint32_t job = wanted.load(std::memory_order_acquire);
    for (int spin = 0; job == done && spin_ && spin < kIdleSpins; ++spin) {
      pause();
      job = wanted.load(std::memory_order_acquire);
    }
    if (job == done) {
      wanted.wait(done, std::memory_order_acquire);
      continue;
    }
    if (stop_.load(std::memory_order_relaxed)) return;
    done = job;
    work_on(thread);
  }
}

void ThreadPool::work_on(int thread) {
  if (runs_ == Runs::kAllThreads) {
    (*work_)(thread);
  } else {
    Worker& worker = workers_[thread];
    worker.napped_seconds = 0;
    const double begin = now_seconds();
    const double core_begin = core_seconds();
    (*work_)(thread);
    const double had = core_seconds() - core_begin;
    worker.lost_seconds = now_seconds() - begin - had - worker.napped_seconds;
  }
  barrier(thread);
}

void ThreadPool::barrier(int thread) {
  const std::uint32_t count = workers_[thread].barriers.load(std::memory_order_relaxed) + 1;
  workers_[thread].barriers.store(count, std::memory_order_release);
  for (int other = 0; other < running(); ++other) {
    // Another thread may already wait at the next barrier, so compare as a distance.
    for (int spin = 0; static_cast<std::int32_t>(
                           workers_[other].barriers.load(std::memory_order_acquire) - count) < 0;
         ++spin) {
      if (!spin_) {
        std::this_thread::yield();
      } else if (spin < kBarrierSpins) {
        pause();
      } else {
        const Stopwatch watch;
        std::this_thread::sleep_for(kNap);
        workers_[thread].napped_seconds += watch.seconds();
      }
    }
  }
}

Share ThreadPool::take(int owner, bool front, int count, int grain, std::uint32_t division) {
  constexpr std::uint64_t kUnits = (std::uint64_t{1} << kUnitBits) - 1;
  const std::uint64_t number = std::uint64_t{division} << 2 * kUnitBits;  // its lower bits
  const Share all = share(count, owner, running());
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
