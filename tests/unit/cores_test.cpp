// The cores of the process: affinity, and the CPU quotas of control groups in both versions.
#include "core/cores.hpp"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

namespace tessera::core {
namespace {

/// A folder that stands for /sys/fs/cgroup.
class CpuQuota : public testing::Test {
 protected:
  CpuQuota() {
    std::string name = testing::TempDir() + "cgroup.XXXXXX";
    root_ = mkdtemp(name.data());
  }
  ~CpuQuota() override { std::filesystem::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path file = root_ + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  int quota(const std::string& proc_self_cgroup) { return cpu_quota(root_, proc_self_cgroup); }

  std::string root_;
};

TEST_F(CpuQuota, ThereIsNone) {
  EXPECT_EQ(quota(""), INT_MAX);
  EXPECT_EQ(quota("0::/\n"), INT_MAX);
  EXPECT_EQ(quota("0::/a/b\n1:cpu:/c\n"), INT_MAX);
  write("/cpu.max", "max 100000\n");
  write("/cpu/cpu.cfs_quota_us", "-1\n");
  write("/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota("0::/\n1:cpu:/\n"), INT_MAX);
}

TEST_F(CpuQuota, CountsCoresAndRoundsUp) {
  for (const auto& [text, cores] : {std::pair{"200000 100000\n", 2},
                                    {"200001 100000\n", 3},
                                    {"150000 100000\n", 2},
                                    {"1000 100000\n", 1},
                                    {"0 100000\n", 1},
                                    {"50000 10000", 5},
                                    {"9223372036854775807 1\n", INT_MAX}}) {
    write("/cpu.max", text);
    EXPECT_EQ(quota("0::/\n"), cores) << text;
  }
}

TEST_F(CpuQuota, WhatIsNoQuotaIsNone) {
  for (const char* text :
       {"", "\n", "max\n", "100000\n", "-5 100000\n", "100000 0\n", "100000 -1\n", "x 100000\n",
        "100000 100000x\n", "99999999999999999999 100000\n"}) {
    write("/cpu.max", text);
    EXPECT_EQ(quota("0::/\n"), INT_MAX) << text;
  }
}

TEST_F(CpuQuota, SmallestOfTheGroupAndItsAncestors) {
  write("/a/b/cpu.max", "800000 100000\n");
  write("/a/cpu.max", "max 100000\n");
  EXPECT_EQ(quota("0::/a/b\n"), 8);
  EXPECT_EQ(quota("0::/a/b/c (deleted)\n"), 8);
  write("/a/cpu.max", "300000 100000\n");
  EXPECT_EQ(quota("0::/a/b\n"), 3);
  EXPECT_EQ(quota("0::/a"), 3);
  EXPECT_EQ(quota("0::/ab\n"), INT_MAX);
  write("/cpu.max", "200000 100000\n");
  EXPECT_EQ(quota("0::/a/b\n"), 2);
  EXPECT_EQ(quota("0::/a:b\n"), 2);
}

TEST_F(CpuQuota, PathsThatTheContainerDoesNotSee) {
  write("/cpu.max", "400000 100000\n");
  EXPECT_EQ(quota("0::/kubepods/pod1/container\n"), 4);
  const std::filesystem::path outside = root_ + ".outside";
  std::filesystem::create_directories(outside);
  std::ofstream(outside / "cpu.max") << "100000 100000\n";
  EXPECT_EQ(quota("0::/../" + outside.filename().string() + "\n"), 4);
  std::filesystem::remove_all(outside);
}

TEST_F(CpuQuota, FirstVersion) {
  write("/cpu,cpuacct/a/cpu.cfs_quota_us", "250000\n");
  write("/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota("4:memory:/\n3:cpu,cpuacct:/a/b\n"), 3);
  EXPECT_EQ(quota("3:cpuset:/a\n"), INT_MAX);
  EXPECT_EQ(quota("3:cpuacct,cpu:/docker/1\n"), INT_MAX);
  write("/cpu/cpu.cfs_quota_us", "50000\n");
  write("/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota("3:cpuacct,cpu:/docker/1\n"), 1);
}

TEST_F(CpuQuota, BothVersionsAtOnce) {
  write("/unified/a/cpu.max", "500000 100000\n");
  EXPECT_EQ(quota("1:cpu:/\n0::/a\n"), 5);
  write("/cpu/cpu.cfs_quota_us", "300000\n");
  write("/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota("1:cpu:/\n0::/a\n"), 3);
}

void confine_this_thread(const cpu_set_t& cores) {
  ASSERT_EQ(pthread_setaffinity_np(pthread_self(), sizeof(cores), &cores), 0);
}

/// The n-th core of `cores` alone.
cpu_set_t only(const cpu_set_t& cores, int n) {
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &cores) && n-- == 0) CPU_SET(core, &one);
  }
  return one;
}

/// Runs `body` as the main thread of a separate process; returns whether it returned true.
bool in_child(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST_F(CpuQuota, LimitsTheThreadsOfThisProcess) {
  const cpu_set_t all = process_cores();
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "needs two cores";
  write("/cpu.max", "100000 100000\n");
  write("/cpu/cpu.cfs_quota_us", "100000\n");
  write("/cpu/cpu.cfs_period_us", "100000\n");
  // A child, because the quota is read once.
  const auto usable_cores_are = [&](int expected) {
    return in_child([&] {
      if (unshare(CLONE_NEWNS) != 0 ||
          mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
          mount(root_.c_str(), "/sys/fs/cgroup", nullptr, MS_BIND, nullptr) != 0) {
        return false;
      }
      return expected == 0 || num_usable_cores() == expected;
    });
  };
  if (!usable_cores_are(0)) GTEST_SKIP() << "needs the right to mount a folder over /sys/fs/cgroup";
  EXPECT_TRUE(usable_cores_are(1));
}

bool in_thread(const std::function<bool()>& body) {
  bool result = false;
  std::thread([&] { result = body(); }).join();
  return result;
}

TEST(ProcessCores, FollowMainThreadAndCaller) {
  const cpu_set_t all = process_cores();
  if (CPU_COUNT(&all) < 2) GTEST_SKIP() << "needs two cores";
  const cpu_set_t first = only(all, 0);
  const cpu_set_t second = only(all, 1);
  const auto are = [](cpu_set_t expected) {
    const cpu_set_t found = process_cores();
    return CPU_EQUAL(&found, &expected) != 0;
  };
  // A pinned thread says nothing about the process.
  EXPECT_TRUE(in_child([&] {
    return in_thread([&] {
      confine_this_thread(first);
      return are(all) && num_usable_cores() >= 1;
    });
  }));
  // The affinity of the main thread counts, at any time.
  EXPECT_TRUE(in_child([&] {
    confine_this_thread(first);
    const bool follows = are(first) && num_usable_cores() == 1;
    confine_this_thread(all);
    return follows && are(all);
  }));
  // A caller that may use more than a confined main thread adds its own.
  EXPECT_TRUE(in_child([&] {
    confine_this_thread(first);
    return in_thread([&] {
      confine_this_thread(second);
      cpu_set_t both;
      CPU_OR(&both, &first, &second);
      return are(both);
    });
  }));
}

TEST(ProcessCores, ConfiguredCoresDoNotFollow) {
  const cpu_set_t all = process_cores();
  const int configured = num_configured_cores();
  EXPECT_GE(configured, CPU_COUNT(&all));
  EXPECT_TRUE(in_child([&] { return configured >= num_usable_cores(); }));
  // Not even if the first query runs under another affinity.
  EXPECT_TRUE(in_child([&] {
    confine_this_thread(only(all, 0));
    return num_configured_cores() == configured;
  }));
}

}  // namespace
}  // namespace tessera::core
