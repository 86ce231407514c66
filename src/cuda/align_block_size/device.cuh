// What the kernels of align_block_size are made of.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/align_block_size/kernels.hpp"
#include "cuda/parts/block_scan.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/fill.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"
#include "cuda/parts/warp_rank.cuh"

namespace tessera::cuda {

/// Has the constant cache fetch the arguments that only extended instances have, before they are
/// waited for.
__device__ __forceinline__ void fetch_args(const AlignBlockSizePlainArgs&) {}
__device__ __forceinline__ void fetch_args(const AlignBlockSizeExtendedArgs& args) {
  asm volatile("" ::"r"(args.id_bias), "l"(args.validation));
}

template <IdWidth kWidth>
using RawId = std::conditional_t<kWidth == IdWidth::k64, std::uint64_t, std::uint32_t>;

template <IdWidth kWidth>
__device__ __forceinline__ RawId<kWidth> load_id(const AlignBlockSizeKernelArgs& args,
                                                 std::int32_t i) {
  if constexpr (kWidth == IdWidth::k64) {
    return static_cast<const std::uint64_t*>(args.topk_ids)[i];
  } else if constexpr (kWidth == IdWidth::k32) {
    return static_cast<const std::uint32_t*>(args.topk_ids)[i];
  } else {
    return args.id_bytes == 1 ? std::uint32_t{static_cast<const std::uint8_t*>(args.topk_ids)[i]}
                              : std::uint32_t{static_cast<const std::uint16_t*>(args.topk_ids)[i]};
  }
}

// `Args` below is one of the two types of arguments.

/// Whether an extended instance places ids as a plain one does.
__device__ __forceinline__ bool places_plainly(const AlignBlockSizePlainArgs&) { return true; }
__device__ __forceinline__ bool places_plainly(const AlignBlockSizeExtendedArgs& args) {
  return args.first_expert == 0 && !args.map_tail;
}

/// The experts, behind the filtered pairs where these are a group.
template <typename Args>
__device__ __forceinline__ std::uint32_t num_groups_of(const Args& args) {
  return args.num_experts + args.first_expert;
}

/// Buckets behind those of the groups.
template <typename Args>
__device__ __forceinline__ std::uint32_t dropped_bucket(const Args& args) {
  return num_groups_of(args);
}
template <typename Args>
__device__ __forceinline__ std::uint32_t unplaced_bucket(const Args& args) {
  return num_groups_of(args) + 1;
}

/// The bucket of an id: its group, or one of the two above.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ std::uint32_t bucket_of(const Args& args, RawId<kWidth> id) {
  id += args.id_bias;
  if constexpr (kWidth == IdWidth::kNarrow) id &= args.id_mask;
  std::uint32_t bucket =
      id < args.id_limit ? static_cast<std::uint32_t>(id) + args.id_shift : dropped_bucket(args);
  if (args.drops_remote && bucket - args.first_expert < args.num_experts) {
    const auto local = static_cast<std::uint32_t>(args.expert_map[bucket - args.first_expert]);
    bucket = local < args.num_experts ? local + args.first_expert : unplaced_bucket(args);
  }
  return bucket;
}

/// Has the first-level cache fetch the map while the ids are still on their way: what is looked up
/// there depends on them, and would be waited for after them.
__device__ __forceinline__ void fetch_map(const AlignBlockSizeKernelArgs& args, int thread,
                                          int num_threads) {
  if (args.expert_map == nullptr) return;
  constexpr int kEntriesPerLine = 128 / sizeof(std::int32_t);
  for (std::uint32_t i = thread * kEntriesPerLine; i < args.num_experts;
       i += num_threads * kEntriesPerLine) {
    [[maybe_unused]] std::int32_t entry;
    asm volatile("ld.global.ca.s32 %0, [%1];" : "=r"(entry) : "l"(args.expert_map + i));
  }
}

/// The local expert of a global one, -1 where that is remote or none.
__device__ __forceinline__ std::int32_t mapped_expert(const AlignBlockSizeKernelArgs& args,
                                                      std::uint32_t expert) {
  if (expert >= args.num_experts) return -1;
  const auto local = static_cast<std::uint32_t>(args.expert_map[expert]);
  return local < args.num_experts ? static_cast<std::int32_t>(local) : -1;
}

/// What expert_ids shows for the blocks of a group.
template <typename Args>
__device__ __forceinline__ std::int32_t shown_expert(const Args& args, std::uint32_t group) {
  const std::uint32_t expert = group - args.first_expert;  // of the filtered pairs: -1
  if (args.expert_map == nullptr || args.drops_remote) return static_cast<std::int32_t>(expert);
  if (args.first_expert != 0) return mapped_expert(args, expert);
  const auto local = static_cast<std::uint32_t>(args.expert_map[expert]);
  return local < args.num_experts ? static_cast<std::int32_t>(local) : -1;
}

/// What expert_ids shows past the last block.
template <typename Args>
__device__ __forceinline__ std::int32_t shown_tail(const Args& args) {
  return args.map_tail ? mapped_expert(args, static_cast<std::uint32_t>(args.tail_expert))
                       : args.tail_expert;
}

/// Writes a group's count, if it was asked for.
template <typename Args>
__device__ __forceinline__ void store_count(const Args& args, std::uint32_t group,
                                            std::uint32_t count) {
  const bool is_expert =
      args.first_expert == 0 || static_cast<std::int32_t>(group) >= args.first_expert;
  if (args.expert_counts != nullptr && is_expert) {
    args.expert_counts[group - args.first_expert] = static_cast<std::int32_t>(count);
  }
}

/// Writes what a group is besides its ids, by one warp: which expert its blocks are of, and, unless
/// all slots were filled before, the padding behind its `count` ids.
template <typename Args>
__device__ __forceinline__ void finish_group(const Args& args, std::uint32_t group,
                                             std::int32_t first_block, std::uint32_t count,
                                             bool pads, int lane) {
  // Unsigned: the last block and the last slot may be the last number of a signed one.
  const std::uint32_t num_blocks = blocks_of(args, count);
  if (num_blocks == 0) return;
  const std::int32_t shown = shown_expert(args, group);
  for (std::uint32_t k = lane; k < num_blocks; k += 32) args.expert_ids[first_block + k] = shown;
  if (!pads) return;
  const std::uint32_t start = first_block * args.block_size;
  const std::uint32_t end = start + num_blocks * args.block_size;
  for (std::uint32_t i = start + count + lane; i < end; i += 32) {
    args.sorted_token_ids[i] = args.num_ids;
  }
}

/// Writes index `i` to its slot, in a kernel that counts ids and reads them again to place them. If
/// somebody else writes to the ids in between, the slot may be any number: the last one then takes
/// what would lie beyond it. Here a minimum costs less than a branch.
__device__ __forceinline__ void place_counted(const AlignBlockSizeKernelArgs& args,
                                              std::uint32_t slot, std::int32_t i) {
  args.sorted_token_ids[min(slot, args.last_slot)] = i;
}

/// The instance of a kernel for these ids, one of kNumThreads threads, and these arguments, or
/// null: `instance` takes the three as constants and a type of their own types.
template <int... kNumThreads, typename Instance>
const void* choose_instance(IdWidth width, int num_threads, bool is_extended, Instance instance) {
  const void* chosen = nullptr;
  const auto of_args = [&](auto id_width, auto threads) {
    using Plain = std::type_identity<AlignBlockSizePlainArgs>;
    using Extended = std::type_identity<AlignBlockSizeExtendedArgs>;
    chosen = is_extended ? reinterpret_cast<const void*>(instance(id_width, threads, Extended()))
                         : reinterpret_cast<const void*>(instance(id_width, threads, Plain()));
  };
  const auto of_width = [&](auto id_width) {
    ((num_threads == kNumThreads ? of_args(id_width, std::integral_constant<int, kNumThreads>())
                                 : void()),
     ...);
  };
  switch (width) {
    case IdWidth::kNarrow:
      of_width(std::integral_constant<IdWidth, IdWidth::kNarrow>());
      break;
    case IdWidth::k32:
      of_width(std::integral_constant<IdWidth, IdWidth::k32>());
      break;
    case IdWidth::k64:
      of_width(std::integral_constant<IdWidth, IdWidth::k64>());
      break;
  }
  return chosen;
}

}  // namespace tessera::cuda
