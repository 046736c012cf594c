#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace firp {

/// The threads of one forward pass. Between passes they spin for a moment and then sleep; inside
/// one they meet at barriers that cost tens of nanoseconds.
class ThreadPool {
 public:
  /// The caller of run() is thread 0; `threads - 1` more are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(arrivals_.size()); }

  /// Runs work(thread) on every thread and returns when all have ended. `work` must not throw.
  void run(const std::function<void(int)>& work);

  /// Inside run(): returns when every thread has called it. What was written before is seen after.
  void barrier(int thread);

 private:
  /// A cache line of its own for each thread: one writer, no contended read-modify-write.
  struct alignas(64) Arrival {
    std::atomic<std::uint32_t> count{0};
  };

  void work_loop(int thread);

  std::vector<Arrival> arrivals_;
  bool spin_;  ///< whether waiting threads keep their cores for a moment
  std::atomic<std::uint32_t> job_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* work_ = nullptr;
  std::vector<std::jthread> workers_;
};

/// Thread `thread`'s share of 0 .. count - 1, in order and as equal as can be.
struct Share {
  int begin, end;
};
inline Share share(int count, int thread, int threads) {
  return {static_cast<int>(static_cast<std::int64_t>(count) * thread / threads),
          static_cast<int>(static_cast<std::int64_t>(count) * (thread + 1) / threads)};
}

}  // namespace firp
