// Integers in the caller's workspace, whatever its alignment.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace tessera::cpu {

struct Workspace {
  static constexpr std::size_t kCacheLineBytes = 64;

  static std::size_t bytes_for(std::int64_t num_ints) {
    return static_cast<std::size_t>(num_ints) * sizeof(std::int32_t) + kCacheLineBytes - 1;
  }

  /// The first cache line boundary of a workspace of at least bytes_for(...) bytes.
  static std::int32_t* ints_in(std::span<std::byte> workspace) {
    void* begin = workspace.data();
    std::size_t space = workspace.size();
    return static_cast<std::int32_t*>(std::align(kCacheLineBytes, 0, begin, space));
  }
};

}  // namespace tessera::cpu
