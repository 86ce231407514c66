#include "cpu/thread_pool.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

namespace tessera::cpu {
namespace {

TEST(ThreadPool, RunsEverySliceOnce) {
  for (const int num_threads : {1, 2, 3, 8, 2}) {
    ThreadPool::Lease lease(num_threads);
    ASSERT_EQ(lease.num_threads(), num_threads);
    for (int round = 0; round < 100; ++round) {
      std::vector<int> runs(num_threads, 0);
      lease.run(num_threads, [&](int slice) { ++runs[slice]; });
      EXPECT_EQ(runs, std::vector<int>(num_threads, 1));
    }
  }
}

TEST(ThreadPool, SlicesRunAtTheSameTime) {
  ThreadPool::Lease lease(3);
  std::atomic<int> begun{0};
  // No slice ends before all have begun: three threads are needed to get through.
  lease.run(3, [&](int) {
    ++begun;
    while (begun < 3) std::this_thread::yield();
  });
  EXPECT_EQ(begun, 3);
}

TEST(ThreadPool, WorkersSleepAndWakeAgain) {
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> sum{0};
    ThreadPool::Lease lease(3);
    lease.run(3, [&](int i) { sum += i; });
    EXPECT_EQ(sum, 0 + 1 + 2);
  }
}

TEST(ThreadPool, WhoFindsThePoolTakenWorksAlone) {
  ThreadPool::Lease taken(2);
  ASSERT_EQ(taken.num_threads(), 2);
  int others_threads = 0;
  int runs = 0;
  std::thread([&] {
    ThreadPool::Lease other(2);
    others_threads = other.num_threads();
    other.run(2, [&](int) { ++runs; });
  }).join();
  EXPECT_EQ(others_threads, 1);
  EXPECT_EQ(runs, 2);
}

TEST(ThreadPool, AForkedChildHasAPoolOfItsOwn) {
  ThreadPool::Lease taken(3);
  ASSERT_EQ(taken.num_threads(), 3);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    alarm(60);
    std::atomic<int> sum{0};
    ThreadPool::Lease fresh(3);
    fresh.run(3, [&](int i) { sum += 1 + i; });
    _exit(fresh.num_threads() == 3 && sum == 1 + 2 + 3 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "wait status " << status;
}

}  // namespace
}  // namespace tessera::cpu
