// The layout of the groups in blocks.
#pragma once

#include <cstdint>

#include "cuda/align_block_size/outputs.cuh"
#include "cuda/parts/block_scan.cuh"

namespace tessera::cuda {

struct GroupCounts {
  std::uint32_t count;   ///< ids of the group
  std::uint32_t before;  ///< of them, ids that belong to earlier CTAs
};

/// Gives the groups [begin, end) their blocks, in order and from block 0 on. All threads of the CTA
/// call `load(group, exists)` together, which returns GroupCounts, zero for a group that does not
/// exist; `store(group, counts, first_block)` is called for each group that does. Returns the
/// number of blocks.
template <int kNumWarps, typename Index, typename Load, typename Store>
__device__ __forceinline__ std::int32_t scan_groups(const AlignBlockSizeKernelArgs& args,
                                                    Index begin, Index end, int num_threads,
                                                    ScanStorage& storage, Load load, Store store) {
  return scan_items<kNumWarps>(
      begin, end, num_threads, storage, load,
      [&](const GroupCounts& counts) { return blocks_of(args, counts.count); }, store);
}

}  // namespace tessera::cuda
