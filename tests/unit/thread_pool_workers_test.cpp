// Cores, scheduling and signals of the pool's workers, whichever thread starts them. Each test
// runs in a separate process, whose pool is fresh.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "core/cores.hpp"
#include "cpu/thread_pool.hpp"

namespace tessera::cpu {
namespace {

constexpr int kSkipped = 77;

/// Runs `body` in a forked child, whose pool has no workers yet. An empty result is a success.
void in_child(const std::function<std::string()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const std::string wrong = body();
    if (!wrong.empty()) std::fprintf(stderr, "%s\n", wrong.c_str());
    _exit(wrong.empty() ? 0 : wrong.starts_with("skipped") ? kSkipped : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "wait status " << status;
  if (WEXITSTATUS(status) == kSkipped) GTEST_SKIP() << "the reason is above";
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the reason is above";
}

/// Threads of this process but its main thread and the calling one. A sanitizer may have others.
std::vector<pid_t> other_threads() {
  std::vector<pid_t> threads;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    const pid_t thread = std::stoi(entry.path().filename());
    if (thread != getpid() && thread != gettid()) threads.push_back(thread);
  }
  return threads;
}

/// The threads that `lease` made the pool start.
std::vector<pid_t> workers_of(ThreadPool::Lease& lease) {
  std::vector<pid_t> workers(lease.num_threads());
  std::atomic<int> begun{0};
  lease.run(lease.num_threads(), [&](int slice) {
    workers[slice] = gettid();
    ++begun;
    while (begun < lease.num_threads()) std::this_thread::yield();
  });
  std::erase(workers, gettid());
  return workers;
}

cpu_set_t cores_of(pid_t thread) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  sched_getaffinity(thread, sizeof(cores), &cores);
  return cores;
}

void confine(pid_t thread, const cpu_set_t& cores) {
  sched_setaffinity(thread, sizeof(cores), &cores);
}

cpu_set_t one_core(int core) {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  return cores;
}

/// The cores of the process in ascending order.
std::vector<int> core_numbers() {
  const cpu_set_t cores = core::process_cores();
  std::vector<int> numbers;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &cores)) numbers.push_back(core);
  }
  return numbers;
}

TEST(ThreadPoolWorkers, RunOnTheProcessCoresButTheCallers) {
  const std::vector<int> cores = core_numbers();
  if (cores.size() < 2) GTEST_SKIP() << "needs two cores";
  in_child([&]() -> std::string {
    const cpu_set_t all = core::process_cores();
    std::string wrong;
    std::vector<pid_t> workers;
    const auto expect = [&](const char* when, const cpu_set_t& expected) {
      ThreadPool::Lease lease(3);
      if (lease.num_threads() != 3) wrong += "no workers; ";
      if (workers.empty()) workers = workers_of(lease);
      for (const pid_t worker : workers) {
        const cpu_set_t found = cores_of(worker);
        if (!CPU_EQUAL(&found, &expected)) wrong += std::string(when) + "; ";
      }
    };
    // Started by a pinned thread, and again after the caller moved.
    std::thread([&] {
      for (const int core : {cores[0], cores[1], cores[0]}) {
        confine(0, one_core(core));
        cpu_set_t others = all;
        CPU_CLR(core, &others);
        expect("a caller pinned to a core", others);
      }
    }).join();
    confine(0, one_core(cores[0]));
    expect("a process confined to one core", one_core(cores[0]));
    confine(0, all);
    ThreadPool::Lease again(3);
    for (const pid_t worker : workers) {
      const cpu_set_t found = cores_of(worker);
      if (CPU_COUNT(&found) != static_cast<int>(cores.size()) - 1) wrong += "free again; ";
    }
    return wrong;
  });
}

TEST(ThreadPoolWorkers, AreNotStartedByAThreadUnderAnIdlePolicy) {
  in_child([]() -> std::string {
    std::string wrong;
    std::thread([&] {
      const sched_param none{};
      if (sched_setscheduler(0, SCHED_IDLE, &none) != 0) wrong = "skipped: no SCHED_IDLE here";
      ThreadPool::Lease lease(3);
      int runs = 0;
      if (lease.num_threads() != 1) wrong = "an idle thread started workers";
      lease.run(5, [&](int) { ++runs; });
      if (runs != 5) wrong = "slices were left out";
    }).join();
    if (!wrong.empty()) return wrong;
    ThreadPool::Lease lease(3);
    if (lease.num_threads() != 3) return "a normal thread got no workers after an idle one";
    for (const pid_t worker : workers_of(lease)) {
      if (sched_getscheduler(worker) != SCHED_OTHER) return "a worker under another policy";
    }
    return "";
  });
}

TEST(ThreadPoolWorkers, AreNotStartedByANicerThread) {
  in_child([]() -> std::string {
    const auto workers_beside = [](int niceness) {
      int count = 0;
      std::thread([&] {
        setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), niceness);
        count = ThreadPool::Lease(3).num_threads() - 1;
      }).join();
      return count;
    };
    setpriority(PRIO_PROCESS, static_cast<id_t>(getpid()), 4);
    if (workers_beside(5) != 0) return "a nicer thread started workers";
    // A thread as nice as the main one starts workers, and nicer threads may use them.
    if (workers_beside(4) != 2) return "a thread of the process's niceness got no workers";
    return workers_beside(10) == 2 ? "" : "a nicer thread may not use the workers";
  });
}

TEST(ThreadPoolWorkers, DoNotInheritARealTimePolicyNorWaitForACallerUnderOne) {
  const std::vector<int> cores = core_numbers();
  in_child([&]() -> std::string {
    // One core for both: the worker runs only while the caller sleeps.
    confine(0, one_core(cores[0]));
    const sched_param lowest{.sched_priority = 1};
    if (sched_setscheduler(0, SCHED_FIFO, &lowest) != 0) return "skipped: no SCHED_FIFO here";
    using Clock = std::chrono::steady_clock;
    ThreadPool::Lease lease(2);
    if (lease.num_threads() != 2) return "no worker";
    std::atomic<bool> begun{false};
    int policy = -1;
    const pid_t caller = gettid();
    const Clock::time_point start = Clock::now();
    lease.run(2, [&](int) {
      if (gettid() == caller) {
        while (!begun) std::this_thread::sleep_for(std::chrono::microseconds(100));
        return;
      }
      policy = sched_getscheduler(0);
      begun = true;
      // Processor time, so that it does not pass while the caller has the core.
      const auto cpu_ms = [] {
        timespec now{};
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
        return now.tv_sec * 1000 + now.tv_nsec / 1000000;
      };
      for (const auto end = cpu_ms() + 20; cpu_ms() < end;) continue;
    });
    if (policy != SCHED_OTHER) return "a worker under a real-time policy";
    return Clock::now() - start < std::chrono::milliseconds(400)
               ? ""
               : "the caller kept the worker's core";
  });
}

TEST(ThreadPoolWorkers, BlockAllSignals) {
  in_child([]() -> std::string {
    ThreadPool::Lease lease(4);
    const std::vector<pid_t> workers = workers_of(lease);
    if (workers.size() != 3) return "no workers";
    for (const pid_t worker : workers) {
      std::ifstream status("/proc/self/task/" + std::to_string(worker) + "/status");
      std::string key, blocked;
      while (status >> key && key != "SigBlk:") continue;
      status >> std::hex >> blocked;
      const unsigned long long mask = std::stoull(blocked, nullptr, 16);
      for (int signal = 1; signal < SIGRTMAX; ++signal) {
        // Two cannot be blocked, and the C library keeps two for itself.
        if (signal == SIGKILL || signal == SIGSTOP || signal == 32 || signal == 33) continue;
        if ((mask >> (signal - 1) & 1) == 0) return "a worker takes signal " + blocked;
      }
    }
    // The caller's own mask has not changed.
    sigset_t own;
    pthread_sigmask(SIG_SETMASK, nullptr, &own);
    return sigisemptyset(&own) != 0 ? "" : "the caller's signals stayed blocked";
  });
}

TEST(ThreadPoolWorkers, AreAtMostOneLessThanSlices) {
  in_child([]() -> std::string {
    ThreadPool::Lease lease(10 * ThreadPool::kMaxSlices);
    if (lease.num_threads() != ThreadPool::kMaxSlices) return "not kMaxSlices threads";
    return std::ssize(other_threads()) >= ThreadPool::kMaxSlices - 1 ? "" : "fewer workers";
  });
}

}  // namespace
}  // namespace tessera::cpu
