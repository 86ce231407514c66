// Memory that changes while it is read, as memory does that another thread writes to, but at known
// moments.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstddef>
#include <functional>
#include <vector>

namespace tessera::test {

/// An array that ends before an inaccessible page. Whenever a reader comes back to a page of it
/// from another one, the page shows the next version, and after the last version the first again:
/// walk n over two pages or more sees version n. A load across the border of two pages reads both
/// as they are. For one thread; one object at a time.
class ChangingMemory {
 public:
  /// Versions are of equal size.
  explicit ChangingMemory(std::vector<std::vector<std::byte>> versions);
  ~ChangingMemory();
  ChangingMemory(const ChangingMemory&) = delete;
  ChangingMemory& operator=(const ChangingMemory&) = delete;

  static constexpr std::size_t kPageBytes = 4096;

  void* data() const { return begin_ + bytes_ - array_bytes_; }

  /// Walks that have begun: how often the first page was entered.
  int num_walks() const { return num_visits_.front(); }

  /// Whether `call` ends without touching inaccessible memory, and without writing to this array.
  bool survives(const std::function<void()>& call);

 private:
  static void on_fault(int signal, siginfo_t* info, void* context);
  void enter(std::size_t offset);

  std::vector<std::vector<std::byte>> versions_;
  std::size_t array_bytes_;
  std::byte* begin_;
  std::size_t bytes_;  // whole pages
  std::vector<int> num_visits_;
  std::size_t open_page_;
  std::size_t open_before_;  // a page that is open besides, for a load that ends in open_page_
  struct sigaction previous_ {};
  sigjmp_buf before_call_;
};

}  // namespace tessera::test
