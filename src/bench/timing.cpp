#include "bench/timing.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <string>
#include <thread>

namespace firp {
namespace {

/// Processor time that all but this process have taken since the machine started.
double seconds_of_others() {
  std::ifstream file("/proc/stat");
  std::string cpu;
  double user = 0, nice = 0, system = 0, idle = 0, io_wait = 0, irq = 0, soft_irq = 0, steal = 0;
  file >> cpu >> user >> nice >> system >> idle >> io_wait >> irq >> soft_irq >> steal;
  const double all = user + nice + system + irq + soft_irq + steal;
  rusage own{};
  getrusage(RUSAGE_SELF, &own);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return all / static_cast<double>(sysconf(_SC_CLK_TCK)) - seconds(own.ru_utime) -
         seconds(own.ru_stime);
}

}  // namespace

Timing timing_of(std::vector<double> seconds) {
  std::ranges::sort(seconds);
  return {.best = seconds.front(), .median = seconds[seconds.size() / 2]};
}

bool Samples::enough(std::size_t thing) const {
  constexpr std::size_t kFew = 3, kMany = 11;
  constexpr double kLongSeconds = 1.0;
  const std::vector<double>& all = seconds_[thing];
  const double sum = std::accumulate(all.begin(), all.end(), 0.0);
  return all.size() >= (sum < kLongSeconds ? kMany : kFew);
}

bool Samples::enough() const {
  for (std::size_t thing = 0; thing < seconds_.size(); ++thing) {
    if (!enough(thing)) return false;
  }
  return true;
}

void Samples::measure(std::size_t thing, const std::function<void()>& work) {
  if (enough(thing)) return;
  // Idle threads of what ran before, ours or OpenMP's, spin for a moment before they sleep.
  std::this_thread::sleep_for(std::chrono::milliseconds(4));
  const Stopwatch watch;
  work();
  seconds_[thing].push_back(watch.seconds());
}

OtherLoad::OtherLoad() : seconds_at_start_(seconds_of_others()) {}

double OtherLoad::cores() const {
  const double seconds = watch_.seconds();
  return seconds > 0 ? std::max(0.0, (seconds_of_others() - seconds_at_start_) / seconds) : 0;
}

}  // namespace firp
