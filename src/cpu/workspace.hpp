// Arrays in the caller's workspace, whatever its alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace tessera::cpu {

struct Workspace {
  static constexpr std::size_t kCacheLineBytes = 64;

  template <typename T>
  static std::size_t bytes_for(std::int64_t num_elements) {
    if (num_elements == 0) return 0;
    return static_cast<std::size_t>(num_elements) * sizeof(T) + kCacheLineBytes - 1;
  }

  /// The first cache line boundary of a workspace of at least bytes_for<T>(...) bytes.
  template <typename T>
  static T* array_in(std::span<std::byte> workspace) {
    void* begin = workspace.data();
    std::size_t space = workspace.size();
    return static_cast<T*>(std::align(kCacheLineBytes, 0, begin, space));
  }
};

/// Hands out parts of memory, one after the other.
struct Parts {
  std::byte* next;
  template <typename T = std::byte>
  T* take(std::int64_t bytes) {
    auto* const part = reinterpret_cast<T*>(next);
    next += bytes;
    return part;
  }
};

}  // namespace tessera::cpu
