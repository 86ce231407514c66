// The process's pool of worker threads.
#pragma once

#include <array>
#include <functional>
#include <mutex>
#include <span>

namespace tessera::cpu {

/// Runs a function for several slices of some work in parallel. The process has one pool, which
/// starts workers when they are first needed and keeps them. It is never destroyed, and after
/// fork() the child has a fresh one, because the parent's workers do not exist there. Workers do
/// not inherit from the thread that starts them: they run under SCHED_OTHER, no nicer than the main
/// thread, on all cores of the process except the caller's. Nothing here throws; if memory or
/// threads run out, there are fewer workers.
class ThreadPool {
 public:
  using Task = std::function<void(int)>;
  static constexpr int kMaxSlices = 64;

  /// The right to use the pool, until destroyed. If another thread holds that right, or no worker
  /// could be started, it has fewer threads than requested: at least the caller's own, at most
  /// kMaxSlices.
  class Lease {
   public:
    explicit Lease(int num_threads);

    int num_threads() const { return num_threads_; }

    /// Calls task(0) ... task(num_slices - 1), each once, and returns when all are done. A free
    /// thread takes the next slice; this thread never waits for a worker that has not begun.
    /// `num_slices` is at most kMaxSlices; `task` must not throw.
    void run(int num_slices, const Task& task);

   private:
    ThreadPool* pool_;
    std::unique_lock<std::mutex> lock_;
    int num_threads_ = 1;
  };

 private:
  struct Job;
  struct Worker;

  ThreadPool() = default;

  /// The process's pool; null if there is no memory for it.
  static ThreadPool* instance();

  /// Starts workers up to `count`, and returns how many there are. The calling thread starts none
  /// if they would inherit its low priority, since they also serve later callers.
  int grow(int count);

  /// Binds the first `count` workers to the process's cores other than the caller's, if there are
  /// others. A worker that the scheduler wakes on the caller's core waits for a time slice, which
  /// is longer than most calls.
  void place(int count);

  std::span<Worker* const> workers(int count) const { return std::span(workers_).first(count); }

  std::mutex in_use_;
  std::array<Worker*, kMaxSlices - 1> workers_{};
  int num_workers_ = 0;
};

}  // namespace tessera::cpu
