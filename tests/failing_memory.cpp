#include "failing_memory.hpp"

#include <cstdlib>
#include <new>

namespace tessera::test {

thread_local Failure failure;

}  // namespace tessera::test

namespace {

bool fails_now() {
  tessera::test::Failure& failure = tessera::test::failure;
  if (!failure.armed) return false;
  if (failure.succeed > 0) {
    --failure.succeed;
    return false;
  }
  if (failure.once && failure.failed > 0) return false;
  ++failure.failed;
  return true;
}

}  // namespace

// Out of line: otherwise the compiler warns that memory is freed by a function of another kind.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return fails_now() ? nullptr : std::malloc(size == 0 ? 1 : size);
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment,
                                     const std::nothrow_t&) noexcept {
  const auto step = static_cast<std::size_t>(alignment);
  return fails_now() ? nullptr : std::aligned_alloc(step, (size + step - 1) / step * step);
}
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* memory = operator new(size, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  void* memory = operator new(size, alignment, std::nothrow);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
