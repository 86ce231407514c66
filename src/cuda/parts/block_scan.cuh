// Prefix sums of a CTA.
#pragma once

#include <cstdint>

#include "cuda/parts/warp.cuh"

namespace tessera::cuda {

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

/// Turns column `bucket` of the warps' counts into what comes before each warp, from `first` on;
/// returns what comes after the last.
template <typename Count>
__device__ __forceinline__ std::uint32_t scan_column(Count* counts, int row_length, int num_rows,
                                                     std::uint32_t bucket,
                                                     std::uint32_t first = 0) {
  constexpr int kBatch = 8;  // loads in flight
  std::uint32_t sum = first;
  for (int row = 0; row < num_rows; row += kBatch) {
    std::uint32_t count[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      count[k] = row + k < num_rows ? counts[(row + k) * row_length + bucket] : 0;
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (row + k < num_rows) {
        counts[(row + k) * row_length + bucket] = static_cast<Count>(sum);
      }
      sum += count[k];
    }
  }
  return sum;
}

}  // namespace tessera::cuda
