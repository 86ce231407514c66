#include "changing_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace tessera::test {
namespace {

ChangingMemory* current = nullptr;

}  // namespace

ChangingMemory::ChangingMemory(std::vector<std::vector<std::byte>> versions)
    : versions_(std::move(versions)),
      array_bytes_(versions_.front().size()),
      bytes_((array_bytes_ + kPageBytes - 1) / kPageBytes * kPageBytes),
      num_visits_(bytes_ / kPageBytes, 0),
      open_page_(num_visits_.size()) {
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
  if (offset >= current->bytes_ || offset / kPageBytes == current->open_page_) {
    siglongjmp(current->before_call_, 1);
  }
  current->enter(offset / kPageBytes);
}

void ChangingMemory::enter(std::size_t page) {
  const auto address = [&](std::size_t p) { return begin_ + p * kPageBytes; };
  if (open_page_ < num_visits_.size()) mprotect(address(open_page_), kPageBytes, PROT_NONE);
  mprotect(address(page), kPageBytes, PROT_READ | PROT_WRITE);
  const auto& version = versions_[static_cast<std::size_t>(num_visits_[page]++) % versions_.size()];
  std::memcpy(address(page), version.data() + page * kPageBytes, kPageBytes);
  mprotect(address(page), kPageBytes, PROT_READ);
  open_page_ = page;
}

}  // namespace tessera::test
