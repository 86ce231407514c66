// How the kernels of align_block_size write their outputs.
#pragma once

#include <cstdint>

#include "cuda/align_block_size/buckets.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/fill.cuh"

namespace tessera::cuda {

/// Whether an extended instance writes the outputs as a plain one does.
__device__ __forceinline__ bool writes_plainly(const AlignBlockSizePlainArgs&) { return true; }
__device__ __forceinline__ bool writes_plainly(const AlignBlockSizeExtendedArgs& args) {
  return args.first_expert == 0 && !args.map_tail && args.slots_of_ids == nullptr;
}

/// The number of blocks of a group of `count` ids.
__device__ __forceinline__ std::int32_t blocks_of(const AlignBlockSizeKernelArgs& args,
                                                  std::uint32_t count) {
  return divide_up(count, args.block_division);
}

/// The local expert of a global one; -1 if the expert is remote or does not exist.
__device__ __forceinline__ std::int32_t mapped_expert(const AlignBlockSizeKernelArgs& args,
                                                      std::uint32_t expert) {
  if (expert >= args.num_experts) return -1;
  const auto local = static_cast<std::uint32_t>(args.expert_map[expert]);
  return local < args.num_experts ? static_cast<std::int32_t>(local) : -1;
}

/// The value of expert_ids for the blocks of a group.
template <typename Args>
__device__ __forceinline__ std::int32_t shown_expert(const Args& args, std::uint32_t group) {
  const std::uint32_t expert = group - args.first_expert;  // -1 for the filtered pairs
  if (args.base.expert_map == nullptr || args.base.drops_remote) {
    return static_cast<std::int32_t>(expert);
  }
  if (args.first_expert != 0) return mapped_expert(args.base, expert);
  const auto local = static_cast<std::uint32_t>(args.base.expert_map[expert]);
  return local < args.base.num_experts ? static_cast<std::int32_t>(local) : -1;
}

/// The value of expert_ids behind the last block.
template <typename Args>
__device__ __forceinline__ std::int32_t shown_tail(const Args& args) {
  return args.map_tail ? mapped_expert(args.base, static_cast<std::uint32_t>(args.base.tail_expert))
                       : args.base.tail_expert;
}

/// Writes a group's count, if the call requests the counts.
template <typename Args>
__device__ __forceinline__ void store_count(const Args& args, std::uint32_t group,
                                            std::uint32_t count) {
  const bool is_expert =
      args.first_expert == 0 || static_cast<std::int32_t>(group) >= args.first_expert;
  if (args.base.expert_counts != nullptr && is_expert) {
    args.base.expert_counts[group - args.first_expert] = static_cast<std::int32_t>(count);
  }
}

/// Writes the expert_ids of a group's blocks and, if `pads`, the padding behind its `count` ids.
/// Called by one warp.
template <typename Args>
__device__ __forceinline__ void finish_group(const Args& args, std::uint32_t group,
                                             std::int32_t first_block, std::uint32_t count,
                                             bool pads, int lane) {
  // Unsigned: the end of the last block or slot may be 2^31.
  const std::uint32_t num_blocks = blocks_of(args.base, count);
  if (num_blocks == 0) return;
  const std::int32_t shown = shown_expert(args, group);
  for (std::uint32_t k = lane; k < num_blocks; k += 32) {
    args.base.expert_ids[first_block + k] = shown;
  }
  if (!pads) return;
  const std::uint32_t start = first_block * args.base.block_size;
  const std::uint32_t end = start + num_blocks * args.base.block_size;
  for (std::uint32_t i = start + count + lane; i < end; i += 32) {
    args.base.sorted_token_ids[i] = args.base.num_ids;
  }
}

/// Clears the slots of the CTA's ids, if the call requests them. A barrier has to follow before any
/// of them is placed.
template <typename Args, typename Ids>
__device__ __forceinline__ void clear_slots_of_ids(const Args& args, const Ids& ids, int thread,
                                                   int num_threads) {
  if (args.slots_of_ids == nullptr) return;
  const std::int64_t first = ids.cta_first();
  fill(args.slots_of_ids, first, first + ids.size(), -1, thread, num_threads);
}

/// Writes index `i` to its slot.
template <typename Args>
__device__ __forceinline__ void place_id(const Args& args, std::int32_t slot, std::int32_t i) {
  args.base.sorted_token_ids[slot] = i;
  if (args.slots_of_ids != nullptr) args.slots_of_ids[i] = slot;
}

/// The same in a kernel that reads the ids twice: to count them, and to place them. If the ids
/// change in between, the slot may be any number, and the index goes to the last slot instead of
/// beyond it. A minimum costs less here than a branch.
template <typename Args>
__device__ __forceinline__ void place_counted(const Args& args, std::uint32_t slot,
                                              std::int32_t i) {
  place_id(args, static_cast<std::int32_t>(min(slot, args.base.last_slot)), i);
}

}  // namespace tessera::cuda
