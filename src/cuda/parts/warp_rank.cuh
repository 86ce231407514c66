// Ranks ids within their buckets, 32 ids at a time.
#pragma once

#include <cstdint>

#include "cuda/parts/warp.cuh"

namespace tessera::cuda {

/// The rank of this lane's id among the ids of the same bucket that the warp has passed to this
/// function, in their order. `counts` and `masks` are rows of shared memory that only this warp
/// uses, indexed by bucket; masks are zero on entry and on exit.
///
/// An atomic OR gathers the lanes of a bucket, as CUB's radix sort does (AgentRadixSortOnesweep,
/// "match any" in shared memory); `__match_any_sync` needs one step per distinct value.
template <typename Count>
__device__ __forceinline__ std::uint32_t rank_in_warp(Count* counts, std::uint32_t* masks,
                                                      std::uint32_t bucket, int lane) {
  atomicOr(&masks[bucket], 1u << lane);
  __syncwarp();
  const std::uint32_t peers = masks[bucket];
  const std::uint32_t seen = counts[bucket];
  const int before = __popc(peers & ((1u << lane) - 1));
  __syncwarp();
  if (before == 0) {
    counts[bucket] = static_cast<Count>(seen + __popc(peers));
    masks[bucket] = 0;
  }
  __syncwarp();
  return seen + before;
}

}  // namespace tessera::cuda
