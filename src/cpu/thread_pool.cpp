#include "cpu/thread_pool.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#include "core/cores.hpp"
#include "core/uncancellable.hpp"

namespace tessera::cpu {
namespace {

std::atomic<ThreadPool*> process_pool{nullptr};

// Runs when the library is loaded, so that no fork can come before it.
[[maybe_unused]] const int kAtFork =
    pthread_atfork(nullptr, nullptr, [] { process_pool.store(nullptr); });

void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 2000;  // some 50 us, the time to wake a sleeping thread

/// Spins until `value` is no longer `old`, or for kSpins. Returns whether it changed.
bool spin_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return true;
    cpu_relax();
  }
  return false;
}

/// Whether the calling thread has at least the priority of the process.
bool has_normal_priority() {
  const int policy = sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;
  return policy != SCHED_IDLE &&
         getpriority(PRIO_PROCESS, 0) <= getpriority(PRIO_PROCESS, static_cast<id_t>(getpid()));
}

}  // namespace

/// One run: every slice goes to the first thread that claims it.
struct ThreadPool::Job {
  const Task& task;
  const int num_slices;
  std::atomic<std::uint64_t> claimed{0};  // one bit per slice

  /// Begins with slice `first`, so that threads start far from each other: neighbouring slices
  /// write to the same cache lines.
  void work(int first) {
    for (int k = 0; k < num_slices; ++k) {
      const int slice = (first + k) % num_slices;
      const std::uint64_t bit = std::uint64_t{1} << slice;
      if ((claimed.fetch_or(bit, std::memory_order_relaxed) & bit) == 0) task(slice);
    }
  }
};

/// A worker's mailbox, on its own cache line.
struct alignas(64) ThreadPool::Worker {
  static constexpr std::uint32_t kIdle = 0;
  static constexpr std::uint32_t kPosted = 1;   // a job waits, and may still be recalled
  static constexpr std::uint32_t kWorking = 2;  // the job must outlive this state

  std::atomic<std::uint32_t> state{kIdle};
  pthread_t thread{};
  cpu_set_t cores{};  // empty: not placed yet
  // Written before kPosted is stored, read after kWorking is.
  Job* job = nullptr;
  int first_slice = 0;

  bool change(std::uint32_t from, std::uint32_t to) {
    return state.compare_exchange_strong(from, to, std::memory_order_acq_rel);
  }

  static void* loop(void* self) {
    auto& worker = *static_cast<Worker*>(self);
    for (;;) {
      if (!spin_while(worker.state, kIdle)) worker.state.wait(kIdle, std::memory_order_acquire);
      if (!worker.change(kPosted, kWorking)) continue;
      worker.job->work(worker.first_slice);
      worker.state.store(kIdle, std::memory_order_release);
    }
  }

  void move_to(const cpu_set_t& new_cores) {
    if (CPU_EQUAL(&cores, &new_cores)) return;
    if (pthread_setaffinity_np(thread, sizeof(new_cores), &new_cores) == 0) cores = new_cores;
  }

  void post(Job* new_job, int new_first_slice) {
    job = new_job;
    first_slice = new_first_slice;
    state.store(kPosted, std::memory_order_release);
    state.notify_one();
  }

  /// Returns when the worker no longer uses the job. Does not sleep at first: less than a slice is
  /// left, and the scheduler could wake the caller on the worker's core. But a caller under a
  /// real-time policy that shares its only core with the worker must not occupy it forever.
  void recall() {
    if (change(kPosted, kIdle)) return;
    constexpr int kYields = 50;
    constexpr useconds_t kSleepUs = 50;
    for (int round = 0; !spin_while(state, kWorking); ++round) {
      if (round < kYields) {
        sched_yield();
      } else {
        const core::Uncancellable guard;
        usleep(kSleepUs);
      }
    }
  }

  /// Starts the thread under SCHED_OTHER, whatever the calling thread's policy; false if that is
  /// not allowed.
  bool start() {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0) return false;
    const sched_param no_priority{};
    pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
    pthread_attr_setschedpolicy(&attributes, SCHED_OTHER);
    pthread_attr_setschedparam(&attributes, &no_priority);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    // The program's own threads handle signals.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const bool started = pthread_create(&thread, &attributes, &loop, this) == 0;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    return started;
  }
};

ThreadPool* ThreadPool::instance() {
  ThreadPool* pool = process_pool.load(std::memory_order_acquire);
  if (pool == nullptr) {
    auto* fresh = new (std::nothrow) ThreadPool;
    if (process_pool.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) {
      pool = fresh;
    } else {
      delete fresh;
    }
  }
  return pool;
}

int ThreadPool::grow(int count) {
  if (num_workers_ < count && !has_normal_priority()) return num_workers_;
  while (num_workers_ < count) {
    auto* worker = new (std::nothrow) Worker;
    if (worker == nullptr) break;
    if (!worker->start()) {
      delete worker;
      break;
    }
    workers_[num_workers_++] = worker;
  }
  return num_workers_;
}

void ThreadPool::place(int count) {
  const cpu_set_t cores = core::process_cores();
  cpu_set_t others = cores;
  if (const int here = sched_getcpu(); here >= 0) CPU_CLR(here, &others);
  const cpu_set_t& chosen = CPU_COUNT(&others) > 0 ? others : cores;
  if (CPU_COUNT(&chosen) == 0) return;
  for (Worker* worker : workers(count)) worker->move_to(chosen);
}

ThreadPool::Lease::Lease(int num_threads) : pool_(instance()) {
  if (num_threads < 2 || pool_ == nullptr) return;
  lock_ = std::unique_lock(pool_->in_use_, std::try_to_lock);
  if (!lock_.owns_lock()) return;
  const int wanted = std::min(num_threads, kMaxSlices);
  num_threads_ = std::min(wanted, 1 + pool_->grow(wanted - 1));
  pool_->place(num_threads_ - 1);
}

void ThreadPool::Lease::run(int num_slices, const Task& task) {
  Job job{task, num_slices};
  if (num_threads_ == 1) return job.work(0);
  int first_slice = 0;
  for (Worker* worker : pool_->workers(num_threads_ - 1)) {
    worker->post(&job, first_slice += num_slices / num_threads_);
  }
  job.work(0);
  for (Worker* worker : pool_->workers(num_threads_ - 1)) worker->recall();
}

}  // namespace tessera::cpu
