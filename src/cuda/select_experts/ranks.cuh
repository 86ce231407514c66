// Ranks of keys: how many others come before a key in the order of the choice.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

#include "cuda/parts/warp.cuh"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {

/// Whether a key comes before another one in the order of the choice.
__device__ __forceinline__ bool is_before(std::uint32_t key, int place, std::uint32_t other,
                                          int others_place) {
  return key > other || (key == other && place < others_place);
}

/// The low bits of a key that tell nothing: those of float16 and bfloat16 are more than five.
__device__ __forceinline__ std::uint32_t free_bits_of_keys(const SelectExpertsKernelArgs& args) {
  return args.correction_bias == nullptr && args.dtype.bits == 16 ? kWarp - 1 : 0;
}

/// A key with its place, of less than 32, in the bits that are free: then equal keys differ.
__device__ __forceinline__ std::uint32_t with_place(std::uint32_t key, int place,
                                                    std::uint32_t free_bits) {
  return (key & ~free_bits) | (~static_cast<std::uint32_t>(place) & free_bits);
}

/// Counts keys of a list, four at once: the sums of four do not wait for each other.
struct KeyCount {
  int4 counts = {0, 0, 0, 0};

  /// Counts those of four keys that reach `least`.
  __device__ __forceinline__ void add(const uint4& four, std::uint32_t least) {
    add(counts.x, four.x, least);
    add(counts.y, four.y, least);
    add(counts.z, four.z, least);
    add(counts.w, four.w, least);
  }

  /// Two instructions, where nvcc makes three of `if (key >= least) ++count`.
  __device__ __forceinline__ static void add(int& count, std::uint32_t key, std::uint32_t least) {
    asm("{ .reg .pred reaches; setp.ge.u32 reaches, %1, %2; @reaches add.s32 %0, %0, 1; }"
        : "+r"(count)
        : "r"(key), "r"(least));
  }

  __device__ __forceinline__ int sum() const { return counts.x + counts.y + (counts.z + counts.w); }
};

/// How many of `num_keys` keys, at most 32, come before the one in the place of this lane, if there
/// is one. Keys of kGone fill the last four.
__device__ __forceinline__ int rank_of_lane(const std::uint32_t* keys, int num_keys) {
  const std::uint32_t key = keys[lane()];
  KeyCount larger;
  // Unrolled, as nvcc 13.0 lets a loop change the address that the code after it still needs.
#pragma unroll
  for (int first = 0; first < kWarp; first += 4) {
    if (first >= num_keys) break;
    larger.add(*reinterpret_cast<const uint4*>(keys + first), key + 1);
  }
  int rank = larger.sum();
  // Equal keys have the same rank so far.
  const unsigned ranks = __reduce_or_sync(kAllLanes, lane() < num_keys ? 1U << rank : 0);
  if (__popc(ranks) < num_keys) {
    rank += __popc(__match_any_sync(kAllLanes, key) & ((1U << lane()) - 1));
  }
  return rank;
}

}  // namespace tessera::cuda
