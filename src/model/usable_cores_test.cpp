#include "model/usable_cores.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <cmath>
#include <string>

#include "model/test_files.h"

namespace firp {
namespace {

/// Control groups written out as files.
class GroupTree {
 public:
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((directory_ / path).parent_path());
    write_bytes(directory_ / path, text);
  }
  /// `mounts`: lines of mountinfo, with {} for this directory.
  double quota(const std::string& groups, const std::string& mounts) {
    write("groups", groups);
    write("mounts", fmt::format(fmt::runtime(mounts), directory_.path().string()));
    return cpu_quota(directory_ / "groups", directory_ / "mounts");
  }

 private:
  TemporaryDirectory directory_;
};

constexpr const char* kV2 = "30 23 0:26 / {}/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
constexpr const char* kV1 =
    "31 23 0:28 / {0}/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "33 31 0:30 / {0}/cgroup/cpuset rw shared:9 - cgroup cgroup rw,cpuset\n"
    "32 31 0:29 / {0}/cgroup/cpu,cpuacct rw shared:8 - cgroup cgroup rw,cpu,cpuacct\n";

TEST(CpuQuota, IsThatOfTheUnifiedHierarchy) {
  GroupTree tree;
  tree.write("cgroup/docker/1234/cpu.max", "150000 100000\n");
  EXPECT_EQ(tree.quota("0::/docker/1234\n", kV2), 1.5);
}

TEST(CpuQuota, IsTheLeastOfTheGroupAndThoseAboveIt) {
  GroupTree tree;
  tree.write("cgroup/pod/cpu.max", "50000 25000\n");
  tree.write("cgroup/pod/container/cpu.max", "400000 100000\n");
  EXPECT_EQ(tree.quota("0::/pod/container/leaf\n", kV2), 2);
  tree.write("cgroup/pod/container/cpu.max", "100000 100000\n");
  EXPECT_EQ(tree.quota("0::/pod/container/leaf\n", kV2), 1);
}

TEST(CpuQuota, IsThatOfTheOlderHierarchyOfTheCpuController) {
  GroupTree tree;
  tree.write("cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "300000\n");
  tree.write("cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
  tree.write("cgroup/cpuset/box/cpu.cfs_quota_us", "100000\n");
  tree.write("cgroup/cpuset/box/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(tree.quota("4:cpuset:/box\n3:cpu,cpuacct:/box\n", kV1), 3);
}

TEST(CpuQuota, IsFoundWhereAContainerSeesItsOwnGroupAlone) {
  GroupTree tree;
  tree.write("cgroup/cpu.max", "200000 100000\n");
  // Docker without a namespace of control groups: the mounted group is named as on the host.
  EXPECT_EQ(tree.quota("0::/docker/1234\n",
                       "30 23 0:26 /docker/1234 {}/cgroup ro - cgroup2 cgroup2 rw\n"),
            2);
  EXPECT_EQ(tree.quota("0::/\n", kV2), 2);
  EXPECT_EQ(tree.quota("0::/../elsewhere\n", kV2), 2);
}

TEST(CpuQuota, IsFoundInAFolderWithASpace) {
  GroupTree tree;
  tree.write("control groups/cpu.max", "200000 100000\n");
  EXPECT_EQ(tree.quota("0::/\n", "30 23 0:26 / {}/control\\040groups rw - cgroup2 none rw\n"), 2);
}

TEST(CpuQuota, IsInfiniteWhereThereIsNone) {
  GroupTree tree;
  EXPECT_TRUE(std::isinf(tree.quota("", "")));
  EXPECT_TRUE(std::isinf(tree.quota("0::/a\n", kV2)));
  tree.write("cgroup/a/cpu.max", "max 100000\n");
  EXPECT_TRUE(std::isinf(tree.quota("0::/a\n", kV2)));
  tree.write("cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "-1\n");
  tree.write("cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  EXPECT_TRUE(std::isinf(tree.quota("3:cpu,cpuacct:/a\n", kV1)));
  EXPECT_TRUE(std::isinf(cpu_quota("/nothing/groups", "/nothing/mounts")));
}

TEST(UsableCores, AreWholeOnesOfTheQuota) {
  EXPECT_EQ(cores_under_quota(8, INFINITY), 8);
  EXPECT_EQ(cores_under_quota(8, 16), 8);
  EXPECT_EQ(cores_under_quota(8, 2), 2);
  EXPECT_EQ(cores_under_quota(8, 1.5), 2);
  EXPECT_EQ(cores_under_quota(8, 1.25), 1);
  EXPECT_EQ(cores_under_quota(8, 0.1), 1);
  EXPECT_EQ(cores_under_quota(0, INFINITY), 1);
}

TEST(UsableCores, AreThoseOfTheAffinity) {
  cpu_set_t all;
  ASSERT_EQ(sched_getaffinity(0, sizeof all, &all), 0);
  int first = 0;
  while (!CPU_ISSET(first, &all)) ++first;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(first, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(usable_cores(), 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof all, &all), 0);
}

}  // namespace
}  // namespace firp
