#include "cpu/thread_pool.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

namespace tessera::cpu {
namespace {

TEST(ThreadPool, RunsTheTaskOncePerThread) {
  for (const int num_threads : {1, 2, 3, 8, 2}) {
    ThreadPool::Lease lease(num_threads);
    ASSERT_EQ(lease.num_threads(), num_threads);
    for (int round = 0; round < 100; ++round) {
      std::vector<std::thread::id> ran_on(num_threads);
      std::vector<int> runs(num_threads, 0);
      lease.run([&](int i) {
        ran_on[i] = std::this_thread::get_id();
        ++runs[i];
      });
      EXPECT_EQ(runs, std::vector<int>(num_threads, 1));
      EXPECT_EQ(std::set(ran_on.begin(), ran_on.end()).size(), ran_on.size());
      EXPECT_EQ(ran_on[0], std::this_thread::get_id());
    }
  }
}

TEST(ThreadPool, WorkersSleepAndWakeAgain) {
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> sum{0};
    ThreadPool::Lease lease(3);
    lease.run([&](int i) { sum += i; });
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
    other.run([&](int) { ++runs; });
  }).join();
  EXPECT_EQ(others_threads, 1);
  EXPECT_EQ(runs, 1);
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
    fresh.run([&](int i) { sum += 1 + i; });
    _exit(fresh.num_threads() == 3 && sum == 1 + 2 + 3 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "wait status " << status;
}

}  // namespace
}  // namespace tessera::cpu
