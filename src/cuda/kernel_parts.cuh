// What the kernels of every op are made of.
#pragma once

#include <cstdint>

#include "cuda/division.hpp"

namespace tessera::cuda {

inline constexpr unsigned kAllLanes = ~0u;

/// Programmatic dependent launch: up to this call a kernel may run beside its predecessor in the
/// stream, and must not touch global memory.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel of the stream start, as far as it can before its own wait.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// floor(x / divisor) for x < 2^31.
__device__ __forceinline__ std::uint32_t divide(std::uint32_t x, Division division) {
  return division.multiplier != 0 ? __umulhi(x, division.multiplier) >> division.shift
                                  : x >> division.shift;
}

/// ceil(count / block_size), for the arguments of any op's kernel.
template <typename Args>
__device__ __forceinline__ std::int32_t blocks_of(const Args& args, std::uint32_t count) {
  if (count == 0) return 0;
  return static_cast<std::int32_t>(divide(count - 1, args.block_division) + 1);
}

/// Fills out[begin, end) by `num_threads` threads, in words of 16 bytes where they fit.
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

/// Exclusive prefix sum of one value a thread over the CTA; `warp_sums` is 32 words of shared
/// memory that must not be in use. One barrier.
template <int kNumWarps>
__device__ __forceinline__ std::int32_t exclusive_sum(std::int32_t value, std::int32_t* warp_sums,
                                                      int lane, int warp, std::int32_t* total) {
  std::int32_t inclusive = value;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const std::int32_t left = __shfl_up_sync(kAllLanes, inclusive, distance);
    if (lane >= distance) inclusive += left;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  const std::int32_t sum = lane < kNumWarps ? warp_sums[lane] : 0;
  *total = __reduce_add_sync(kAllLanes, sum);
  return __reduce_add_sync(kAllLanes, lane < warp ? sum : 0) + inclusive - value;
}

}  // namespace tessera::cuda
