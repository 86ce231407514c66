// Fills ranges of global and shared memory.
#pragma once

#include <cstdint>

namespace tessera::cuda {

/// Fills out[begin, end) with `num_threads` threads, which write 16 bytes at a time where the
/// alignment permits.
__device__ __forceinline__ void fill(std::int32_t* out, std::int64_t begin, std::int64_t end,
                                     std::int32_t value, int thread, int num_threads) {
  std::int32_t* const first = out + begin;
  std::int32_t* const last = out + end;
  auto* const first_word = reinterpret_cast<std::int32_t*>(
      (reinterpret_cast<std::uintptr_t>(first) + 15) & ~std::uintptr_t{15});
  if (first_word >= last) {
    for (std::int32_t* p = first + thread; p < last; p += num_threads) *p = value;
    return;
  }
  auto* const last_word =
      reinterpret_cast<std::int32_t*>(reinterpret_cast<std::uintptr_t>(last) & ~std::uintptr_t{15});
  if (thread < first_word - first) first[thread] = value;
  const int4 word = make_int4(value, value, value, value);
  for (int4* p = reinterpret_cast<int4*>(first_word) + thread;
       p < reinterpret_cast<int4*>(last_word); p += num_threads) {
    *p = word;
  }
  if (thread < last - last_word) last_word[thread] = value;
}

/// Zeroes `bytes` of shared memory with `num_threads` threads. `bytes` is a multiple of 16, and so
/// is the address.
__device__ __forceinline__ void clear_shared(void* memory, int bytes, int thread, int num_threads) {
  for (int i = thread; i < bytes / 16; i += num_threads) {
    static_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
  }
}

}  // namespace tessera::cuda
