// Prefix sums of a CTA.
#pragma once

#include <cstdint>

#include "cuda/parts/warp.cuh"

namespace tessera::cuda {

/// Shared memory of a scan. Must not be in use when a scan starts.
struct ScanStorage {
  std::int32_t warp_sums[32];
};

/// Inclusive prefix sum of one value per lane over the warp.
__device__ __forceinline__ std::int32_t inclusive_sum_of_warp(std::int32_t value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const std::int32_t left = __shfl_up_sync(kAllLanes, value, distance);
    if (lane >= distance) value += left;
  }
  return value;
}

/// Exclusive prefix sum of one value per thread over the CTA, and the sum of all values. One
/// barrier.
template <int kNumWarps>
__device__ __forceinline__ std::int32_t exclusive_sum(std::int32_t value, ScanStorage& storage,
                                                      std::int32_t* total) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int warp = thread / 32;
  const std::int32_t inclusive = inclusive_sum_of_warp(value);
  if (lane == 31) storage.warp_sums[warp] = inclusive;
  __syncthreads();
  const std::int32_t sum = lane < kNumWarps ? storage.warp_sums[lane] : 0;
  *total = __reduce_add_sync(kAllLanes, sum);
  return __reduce_add_sync(kAllLanes, lane < warp ? sum : 0) + inclusive - value;
}

/// Exclusive prefix sum over the items [begin, end), which may be more than the CTA has threads.
/// All threads call `load(i, exists)` together, for i >= end with `exists` false, and get an item;
/// `size_of(item)` is what is summed. `store(i, item, before)` is called only for items that exist.
/// Returns the sum of all sizes. Ends with a barrier, if there are items.
template <int kNumWarps, typename Index, typename Load, typename SizeOf, typename Store>
__device__ __forceinline__ std::int32_t scan_items(Index begin, Index end, int num_threads,
                                                   ScanStorage& storage, Load load, SizeOf size_of,
                                                   Store store) {
  std::int32_t total = 0;
  for (Index base = begin; base < end; base += num_threads) {
    const Index i = base + static_cast<int>(threadIdx.x);
    const bool exists = i < end;
    const auto item = load(i, exists);
    std::int32_t chunk_total;
    const std::int32_t before =
        total + exclusive_sum<kNumWarps>(size_of(item), storage, &chunk_total);
    if (exists) store(i, item, before);
    total += chunk_total;
    __syncthreads();
  }
  return total;
}

/// Replaces each count in one column of a table by the sum of the counts above it plus `first`.
/// Returns the sum of the whole column plus `first`.
template <typename Count>
__device__ __forceinline__ std::uint32_t scan_column(Count* counts, int row_length, int num_rows,
                                                     std::uint32_t column,
                                                     std::uint32_t first = 0) {
  constexpr int kBatch = 8;  // loads in flight
  std::uint32_t sum = first;
  for (int row = 0; row < num_rows; row += kBatch) {
    std::uint32_t count[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      count[k] = row + k < num_rows ? counts[(row + k) * row_length + column] : 0;
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      if (row + k < num_rows) {
        counts[(row + k) * row_length + column] = static_cast<Count>(sum);
      }
      sum += count[k];
    }
  }
  return sum;
}

}  // namespace tessera::cuda
