#pragma once

#include <filesystem>

namespace firp {

/// Cores that this process may use: those of its affinity, and no more than the CPU quotas of its
/// control groups give it (a container's: `docker run --cpus 2`). At least 1.
int usable_cores();

/// CPUs' worth of time that the quotas of a process's control groups, and of the groups above them,
/// leave it; infinity: no quota. The files are as /proc/self/cgroup and /proc/self/mountinfo.
double cpu_quota(const std::filesystem::path& groups, const std::filesystem::path& mounts);

/// The number of threads that is fastest under a quota: the nearest whole one. With 1.25 CPUs two
/// threads that are stopped for a part of the time decode as fast as one that never is; with 1.5,
/// 1.4 times as fast.
int cores_under_quota(int cores, double quota);

}  // namespace firp
