// Memory with canaries that detect writes beside it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define TESSERA_TEST_HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TESSERA_TEST_HAS_ASAN 1
#endif
#endif
#ifdef TESSERA_TEST_HAS_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace tessera::test {

inline constexpr std::byte kPoison{0xa5};
inline constexpr std::size_t kGuardBytes = 256;

/// An array of exactly the size asked for, filled with poison, between two guard zones. Under the
/// address sanitizer touching a guard zone is an error at once; elsewhere intact() finds writes.
template <typename T>
class GuardedBuffer {
 public:
  /// `misalignment` moves the array off the alignment that memory has by default.
  explicit GuardedBuffer(std::int64_t size, std::size_t misalignment = 0,
                         std::size_t guard_bytes = kGuardBytes)
      : lead_bytes_(guard_bytes + misalignment),
        bytes_(static_cast<std::size_t>(size) * sizeof(T)),
        tail_bytes_(guard_bytes),
        memory_(lead_bytes_ + bytes_ + tail_bytes_, kCanary) {
    poison(kPoison);
    guard();
  }

  explicit GuardedBuffer(std::span<const T> contents, std::size_t misalignment = 0)
      : GuardedBuffer(static_cast<std::int64_t>(contents.size()), misalignment) {
    std::copy(contents.begin(), contents.end(), span().begin());
  }

  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;
  ~GuardedBuffer() { unguard(); }

  T* data() { return reinterpret_cast<T*>(memory_.data() + lead_bytes_); }
  std::span<T> span() { return {data(), bytes_ / sizeof(T)}; }

  void poison(std::byte value) {
    poison_ = value;
    std::fill_n(memory_.data() + lead_bytes_, bytes_, value);
  }

  std::byte poisoned_with() const { return poison_; }

  /// Whether the array still holds nothing but poison.
  bool untouched() const {
    const std::byte* begin = memory_.data() + lead_bytes_;
    return std::all_of(begin, begin + bytes_, [&](std::byte b) { return b == poison_; });
  }

  /// Whether both guard zones are as they were.
  bool intact() {
    unguard();
    const auto is_canary = [](std::byte b) { return b == kCanary; };
    const std::byte* tail = memory_.data() + lead_bytes_ + bytes_;
    const bool result = std::all_of(memory_.data(), memory_.data() + lead_bytes_, is_canary) &&
                        std::all_of(tail, tail + tail_bytes_, is_canary);
    guard();
    return result;
  }

 private:
  static constexpr std::byte kCanary{0x5c};

  void guard() {
#ifdef TESSERA_TEST_HAS_ASAN
    __asan_poison_memory_region(memory_.data(), lead_bytes_);
    __asan_poison_memory_region(memory_.data() + lead_bytes_ + bytes_, tail_bytes_);
#endif
  }

  void unguard() {
#ifdef TESSERA_TEST_HAS_ASAN
    __asan_unpoison_memory_region(memory_.data(), memory_.size());
#endif
  }

  std::size_t lead_bytes_;
  std::size_t bytes_;
  std::size_t tail_bytes_;
  std::vector<std::byte> memory_;
  std::byte poison_{};
};

}  // namespace tessera::test
