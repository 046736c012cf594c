#include "model/usable_cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <optional>
#include <ranges>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace firp {
namespace {

constexpr double kNoQuota = std::numeric_limits<double>::infinity();

/// A mounted hierarchy of control groups.
struct GroupMount {
  std::filesystem::path root;   ///< the group that is mounted
  std::filesystem::path point;  ///< where
  bool unified;                 ///< version 2
};

/// Whether `word` stands in a list with commas.
bool lists(std::string_view list, std::string_view word) {
  return std::ranges::any_of(std::views::split(list, ','),
                             [&](const auto& part) { return std::ranges::equal(part, word); });
}

/// The kernel writes a space in a path as \040.
std::string without_escapes(const std::string& text) {
  std::string plain;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>(std::stoi(text.substr(i + 1, 3), nullptr, 8));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

/// Of a line of mountinfo (proc_pid_mountinfo(5)); nullopt: no hierarchy that may hold CPU quotas.
std::optional<GroupMount> parse_mount(const std::string& line) {
  std::istringstream words(line);
  std::string word, root, point, type, source, options;
  words >> word >> word >> word >> root >> point;
  while (words >> word && word != "-") {
  }
  words >> type >> source >> options;
  const bool unified = type == "cgroup2";
  if (!unified && !(type == "cgroup" && lists(options, "cpu"))) return std::nullopt;
  return GroupMount{without_escapes(root), without_escapes(point), unified};
}

/// Quota over period, in CPUs, of one group.
double quota_of(const std::filesystem::path& folder, bool unified) {
  double quota = -1, period = 0;  // what is not there, or "max", is no number
  if (unified) {
    std::ifstream(folder / "cpu.max") >> quota >> period;
  } else {
    std::ifstream(folder / "cpu.cfs_quota_us") >> quota;
    std::ifstream(folder / "cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : kNoQuota;
}

/// The least quota of `group` and of all above it that are mounted.
double least_quota(const GroupMount& mount, const std::filesystem::path& group) {
  // In a container the mounted group may be the container's own, while the path is the host's.
  const std::filesystem::path below = group.lexically_relative(mount.root);
  std::filesystem::path folder = mount.point;
  double least = quota_of(folder, mount.unified);
  if (below.empty() || *below.begin() == "..") return least;
  for (const std::filesystem::path& name : below) {
    folder /= name;
    least = std::min(least, quota_of(folder, mount.unified));
  }
  return least;
}

int cores_of_affinity() {
  std::vector<cpu_set_t> sets(16);  // 16,384 CPUs
  const std::size_t bytes = sets.size() * sizeof(cpu_set_t);
  if (sched_getaffinity(0, bytes, sets.data()) == 0) return CPU_COUNT_S(bytes, sets.data());
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

double cpu_quota(const std::filesystem::path& groups, const std::filesystem::path& mounts) {
  // "5:cpu,cpuacct:/docker/1234" of version 1, "0::/user.slice" of version 2.
  std::optional<std::filesystem::path> group, unified_group;
  std::ifstream group_lines(groups);
  for (std::string line; std::getline(group_lines, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (line.starts_with("0::")) unified_group = line.substr(second + 1);
    if (lists(controllers, "cpu")) group = line.substr(second + 1);
  }
  double least = kNoQuota;
  std::ifstream mount_lines(mounts);
  for (std::string line; std::getline(mount_lines, line);) {
    const std::optional<GroupMount> mount = parse_mount(line);
    if (!mount) continue;
    const std::optional<std::filesystem::path>& own = mount->unified ? unified_group : group;
    if (own) least = std::min(least, least_quota(*mount, *own));
  }
  return least;
}

int cores_under_quota(int cores, double quota) {
  if (!(quota < cores)) return std::max(cores, 1);
  return std::max(static_cast<int>(std::lround(quota)), 1);
}

int usable_cores() {
  return cores_under_quota(cores_of_affinity(),
                           cpu_quota("/proc/self/cgroup", "/proc/self/mountinfo"));
}

}  // namespace firp
