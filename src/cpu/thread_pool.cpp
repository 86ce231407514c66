#include "cpu/thread_pool.hpp"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>

namespace tessera::cpu {
namespace {

std::atomic<ThreadPool*> process_pool{nullptr};

void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 2000;  // some 50 us: what it takes to wake a sleeping thread

/// Spins until `value` is no longer `old`, or for kSpins. Returns whether it changed.
bool spin_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return true;
    cpu_relax();
  }
  return false;
}

}  // namespace

/// One run: every slice goes to whoever asks for it first.
struct ThreadPool::Job {
  const Task& task;
  const int num_slices;
  std::atomic<std::uint64_t> claimed{0};  // a bit per slice

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

/// A worker's mailbox, on a cache line of its own.
struct alignas(64) ThreadPool::Worker {
  static constexpr std::uint32_t kIdle = 0;
  static constexpr std::uint32_t kPosted = 1;   // a job waits, and may still be taken back
  static constexpr std::uint32_t kWorking = 2;  // the job must outlive this

  static constexpr int kAnyCore = -1;

  std::atomic<std::uint32_t> state{kIdle};
  pthread_t thread{};
  int core = kAnyCore;
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

  void move_to(int new_core) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(new_core, &cores);
    if (pthread_setaffinity_np(thread, sizeof(cores), &cores) == 0) core = new_core;
  }

  void post(Job* new_job, int new_first_slice) {
    job = new_job;
    first_slice = new_first_slice;
    state.store(kPosted, std::memory_order_release);
    state.notify_one();
  }

  /// Returns when the worker has nothing to do with the job any more. Does not sleep: what is left
  /// is less than a slice, and a woken caller could find itself on the worker's core.
  void recall() {
    if (change(kPosted, kIdle)) return;
    while (!spin_while(state, kWorking)) sched_yield();
  }

  bool start() {
    // Signals are the business of the program's own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const bool started = pthread_create(&thread, nullptr, &loop, this) == 0;
    if (started) pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return started;
  }
};

ThreadPool::ThreadPool() {
  if (sched_getaffinity(0, sizeof(cores_), &cores_) != 0) CPU_ZERO(&cores_);
}

ThreadPool& ThreadPool::instance() {
  static const int at_fork = pthread_atfork(nullptr, nullptr, [] { process_pool.store(nullptr); });
  static_cast<void>(at_fork);
  ThreadPool* pool = process_pool.load(std::memory_order_acquire);
  if (pool == nullptr) {
    auto* fresh = new ThreadPool;
    if (process_pool.compare_exchange_strong(pool, fresh, std::memory_order_acq_rel)) {
      pool = fresh;
    } else {
      delete fresh;
    }
  }
  return *pool;
}

int ThreadPool::grow(int count) {
  while (static_cast<int>(workers_.size()) < count) {
    auto* worker = new Worker;
    if (!worker->start()) {
      delete worker;
      break;
    }
    workers_.push_back(worker);
  }
  return static_cast<int>(workers_.size());
}

void ThreadPool::spread(int count) {
  const int here = sched_getcpu();
  cpu_set_t free = cores_;
  if (here >= 0) CPU_CLR(here, &free);
  for (const Worker* worker : workers_) {
    if (worker->core != Worker::kAnyCore) CPU_CLR(worker->core, &free);
  }
  for (Worker* worker : std::span(workers_).first(count)) {
    if (worker->core != Worker::kAnyCore && worker->core != here) continue;
    int core = 0;
    while (core < CPU_SETSIZE && !CPU_ISSET(core, &free)) ++core;
    if (core == CPU_SETSIZE) return;
    CPU_CLR(core, &free);
    worker->move_to(core);
  }
}

ThreadPool::Lease::Lease(int num_threads)
    : pool_(instance()), lock_(pool_.in_use_, std::defer_lock) {
  if (num_threads > 1 && lock_.try_lock()) {
    num_threads_ = std::min(num_threads, 1 + pool_.grow(num_threads - 1));
    pool_.spread(num_threads_ - 1);
  }
}

void ThreadPool::Lease::run(int num_slices, const Task& task) {
  Job job{task, num_slices};
  const auto workers = std::span(pool_.workers_).first(num_threads_ - 1);
  int first_slice = 0;
  for (Worker* worker : workers) worker->post(&job, first_slice += num_slices / num_threads_);
  job.work(0);
  for (Worker* worker : workers) worker->recall();
}

}  // namespace tessera::cpu
