#include "changing_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace tessera::test {
namespace {

ChangingMemory* current = nullptr;

constexpr std::size_t kWidestLoad = 64;

}  // namespace

ChangingMemory::ChangingMemory(std::vector<std::vector<std::byte>> versions)
    : versions_(std::move(versions)),
      array_bytes_(versions_.front().size()),
      bytes_((array_bytes_ + kPageBytes - 1) / kPageBytes * kPageBytes),
      num_visits_(bytes_ / kPageBytes, 0),
      open_page_(num_visits_.size()),
      open_before_(num_visits_.size()) {
  for (std::vector<std::byte>& version : versions_) {
    version.insert(version.begin(), bytes_ - array_bytes_, std::byte{});
  }
  begin_ = static_cast<std::byte*>(
      mmap(nullptr, bytes_ + kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  current = this;
}

ChangingMemory::~ChangingMemory() {
  munmap(begin_, bytes_ + kPageBytes);
  current = nullptr;
}

bool ChangingMemory::survives(const std::function<void()>& call) {
  struct sigaction action {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGSEGV, &action, &previous_);
  const bool survived = sigsetjmp(before_call_, 1) == 0;
  if (survived) call();
  sigaction(SIGSEGV, &previous_, nullptr);
  return survived;
}

void ChangingMemory::on_fault(int, siginfo_t* info, void*) {
  const auto offset = reinterpret_cast<std::uintptr_t>(info->si_addr) -
                      reinterpret_cast<std::uintptr_t>(current->begin_);
  // An open page is there to be read: this is a write.
  const std::size_t page = offset / kPageBytes;
  if (offset >= current->bytes_ || page == current->open_page_ || page == current->open_before_) {
    siglongjmp(current->before_call_, 1);
  }
  current->enter(offset);
}

void ChangingMemory::enter(std::size_t offset) {
  const std::size_t page = offset / kPageBytes;
  const auto protect = [&](std::size_t p, int access) {
    if (p < num_visits_.size()) mprotect(begin_ + p * kPageBytes, kPageBytes, access);
  };
  // With one page open at a time, a load across a border would never end.
  if (page + 1 == open_page_ && offset % kPageBytes >= kPageBytes - kWidestLoad &&
      num_visits_[page] > 0) {
    open_before_ = page;
    protect(page, PROT_READ);
    return;
  }
  protect(open_page_, PROT_NONE);
  protect(open_before_, PROT_NONE);
  protect(page, PROT_READ | PROT_WRITE);
  const auto& version = versions_[static_cast<std::size_t>(num_visits_[page]++) % versions_.size()];
  std::memcpy(begin_ + page * kPageBytes, version.data() + page * kPageBytes, kPageBytes);
  protect(page, PROT_READ);
  open_page_ = page;
  open_before_ = num_visits_.size();
}

}  // namespace tessera::test
