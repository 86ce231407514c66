// The process's one pool of worker threads.
#pragma once

#include <sched.h>

#include <functional>
#include <mutex>
#include <vector>

namespace tessera::cpu {

/// Runs a function for several slices of some work at once. There is one pool for the process; it
/// starts workers when first asked for them and keeps them. It is never destroyed, and after fork()
/// the child has a fresh one, because the parent's workers do not exist there.
class ThreadPool {
 public:
  using Task = std::function<void(int)>;
  static constexpr int kMaxSlices = 64;

  static ThreadPool& instance();

  /// The right to use the pool, until destroyed. Where another thread holds that right, or no
  /// worker could be started, it has fewer threads than asked for: at least the caller's own.
  class Lease {
   public:
    explicit Lease(int num_threads);

    int num_threads() const { return num_threads_; }

    /// Calls task(0) ... task(num_slices - 1), each once, and returns when all are done. Whoever
    /// is free takes the next slice; this thread never waits for a worker that has not begun.
    /// At most kMaxSlices; `task` must not throw.
    void run(int num_slices, const Task& task);

   private:
    ThreadPool& pool_;
    std::unique_lock<std::mutex> lock_;
    int num_threads_ = 1;
  };

 private:
  struct Job;
  struct Worker;

  ThreadPool();

  /// Starts workers up to `count`, and returns how many there are.
  int grow(int count);

  /// Gives each of the first `count` workers a core of its own, other than the caller's, as far as
  /// there are cores. A scheduler that wakes a worker on the core where the caller computes lets it
  /// wait for a time slice, which is longer than most calls.
  void spread(int count);

  cpu_set_t cores_;  // that this process may use

  std::mutex in_use_;
  std::vector<Worker*> workers_;
};

}  // namespace tessera::cpu
