#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "engine/thread_count.h"

namespace firp {

/// Thread `thread`'s share of 0 .. count - 1, in order and as equal as can be.
struct Share {
  int begin, end;
};
inline Share share(int count, int thread, int threads) {
  return {static_cast<int>(static_cast<std::int64_t>(count) * thread / threads),
          static_cast<int>(static_cast<std::int64_t>(count) * (thread + 1) / threads)};
}

/// The threads of one forward pass. Between passes they spin for a moment and then sleep; inside
/// one they meet at barriers that cost tens of nanoseconds.
class ThreadPool {
 public:
  /// The caller of run() is thread 0; `threads - 1` more are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Runs work(thread) on every thread and returns when all have ended. `work` must not throw.
  void run(const std::function<void(int)>& work) { run_on(size(), work); }

  /// The same on as many threads as help (ThreadCount): fewer where other programs take cores.
  void run_on_free_cores(const std::function<void(int)>& work);

  /// Inside a run, and after it until the next one: its threads, of which the first is 0.
  int running() const { return running_; }

  /// Inside a run: returns when every thread has called it. What was written before is seen after.
  void barrier(int thread);

  /// Inside a run, with a barrier() before the next call: calls work(begin, end, goes_on) until all
  /// of 0 .. count - 1 are done. Every thread calls it with the same arguments. Each does its
  /// share(), front to back, in runs that become shorter, of `grain` or a multiple of it where
  /// there is as much; and then what others have left of theirs, from the end: a core that is
  /// slower, or that another program uses too, does not keep the others waiting. `goes_on`: there
  /// is more of this thread's share behind the run.
  template <typename Work>
  void divide(int thread, int count, int grain, const Work& work);

 private:
  /// A cache line of its own for each thread: one writer, no contended read-modify-write.
  struct alignas(64) Arrival {
    std::atomic<std::uint32_t> count{0};
    std::atomic<double> waited_seconds{0};  ///< long waits alone
    int threads = 0;                        ///< of the run that the thread is in; its own
  };
  struct alignas(64) Job {
    std::atomic<std::uint32_t> number{0};
  };

  /// What is left of a thread's share.
  struct alignas(64) Left {
    /// The number of the division, then begin and end, counted from the share's begin. Of an older
    /// division: nobody has taken anything yet.
    std::atomic<std::uint64_t> word{0};
    std::uint32_t division = 0;  ///< that the thread itself is in
  };
  static constexpr int kUnitBits = 20;  ///< of begin and end

  /// A run of what is left of `owner`'s share, from its front or its end; empty where it is done.
  Share take(int owner, bool front, int count, int grain, std::uint32_t division);

  void run_on(int threads, const std::function<void(int)>& work);
  void work_loop(int thread);

  std::vector<Arrival> arrivals_;
  std::vector<Left> left_;
  std::vector<Job> jobs_;  ///< of each worker: those that a run does not need sleep on
  bool spin_;              ///< whether waiting threads keep their cores for a moment
  std::atomic<bool> stop_{false};
  ThreadCount free_;
  // Of the run at hand. A thread that was left out of others takes up the counts of thread 0.
  int running_ = 1;
  std::uint32_t first_arrival_ = 0, first_division_ = 0;
  const std::function<void(int)>* work_ = nullptr;
  std::vector<std::jthread> workers_;
};

template <typename Work>
void ThreadPool::divide(int thread, int count, int grain, const Work& work) {
  const int threads = running();
  if (threads == 1 || count / threads + 1 >= 1 << kUnitBits) {
    const auto [begin, end] = share(count, thread, threads);
    if (begin < end) work(begin, end, /*goes_on=*/false);
    return;
  }
  const std::uint32_t division = ++left_[thread].division;
  const int own_end = share(count, thread, threads).end;
  for (int i = 0; i < threads; ++i) {
    const int owner = (thread + i) % threads;
    for (;;) {
      const auto [begin, end] = take(owner, i == 0, count, grain, division);
      if (begin == end) break;
      work(begin, end, /*goes_on=*/i == 0 && end < own_end);
    }
  }
}

}  // namespace firp
