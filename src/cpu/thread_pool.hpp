// The process's one pool of worker threads.
#pragma once

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

  static ThreadPool& instance();

  /// The right to use the pool, until destroyed. Where another thread holds that right, or no
  /// worker could be started, it has fewer threads than asked for: at least the caller's own.
  class Lease {
   public:
    explicit Lease(int num_threads);

    int num_threads() const { return num_threads_; }

    /// Calls task(0) ... task(num_threads() - 1), each once, and returns when all are done. A
    /// worker takes a slice as soon as it runs; what no worker has taken by the time this thread is
    /// free, this thread does, so that it never waits for a worker that has not begun. `task` must
    /// not throw.
    void run(const Task& task);

   private:
    ThreadPool& pool_;
    std::unique_lock<std::mutex> lock_;
    int num_threads_ = 1;
  };

 private:
  struct Job;
  struct Worker;

  /// Starts workers up to `count`, and returns how many there are.
  int grow(int count);

  std::mutex in_use_;
  std::vector<Worker*> workers_;
};

}  // namespace tessera::cpu
