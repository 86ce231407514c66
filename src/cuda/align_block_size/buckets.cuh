// From ids to buckets: a bucket per group, then one for the dropped ids, then one for all that is
// placed nowhere.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/align_block_size/kernels.hpp"

namespace tessera::cuda {

// `Args` below is AlignBlockSizePlainArgs or AlignBlockSizeExtendedArgs.

/// Makes the constant cache fetch the arguments that only extended instances have, ahead of their
/// use.
__device__ __forceinline__ void prefetch_args(const AlignBlockSizePlainArgs&) {}
__device__ __forceinline__ void prefetch_args(const AlignBlockSizeExtendedArgs& args) {
  asm volatile("" ::"r"(args.id_bias), "l"(args.validation));
}

/// Makes the first-level cache fetch the map while the ids are still being loaded: the entries that
/// a kernel needs depend on the ids, and would be waited for in turn.
__device__ __forceinline__ void prefetch_map(const AlignBlockSizeKernelArgs& args, int thread,
                                             int num_threads) {
  if (args.expert_map == nullptr) return;
  constexpr int kEntriesPerLine = 128 / sizeof(std::int32_t);
  for (std::uint32_t i = thread * kEntriesPerLine; i < args.num_experts;
       i += num_threads * kEntriesPerLine) {
    [[maybe_unused]] std::int32_t entry;
    asm volatile("ld.global.ca.s32 %0, [%1];" : "=r"(entry) : "l"(args.expert_map + i));
  }
}

template <IdWidth kWidth>
using RawId = std::conditional_t<kWidth == IdWidth::k64, std::uint64_t, std::uint32_t>;

/// Loads topk_ids[i], zero-extended.
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

/// The number of groups: one per expert, and before them one of the filtered pairs if the call has
/// such a group.
template <typename Args>
__device__ __forceinline__ std::uint32_t num_groups_of(const Args& args) {
  return args.base.num_experts + args.first_expert;
}

/// The bucket of invalid ids.
template <typename Args>
__device__ __forceinline__ std::uint32_t dropped_bucket(const Args& args) {
  return num_groups_of(args);
}

/// The bucket of pairs of remote experts that the call leaves out, and of lanes without an id.
template <typename Args>
__device__ __forceinline__ std::uint32_t unplaced_bucket(const Args& args) {
  return num_groups_of(args) + 1;
}

template <IdWidth kWidth, typename Args>
__device__ __forceinline__ std::uint32_t bucket_of(const Args& args, RawId<kWidth> id) {
  id += args.id_bias;
  if constexpr (kWidth == IdWidth::kNarrow) id &= args.id_mask;
  std::uint32_t bucket = id < args.base.id_limit ? static_cast<std::uint32_t>(id) + args.id_shift
                                                 : dropped_bucket(args);
  if (args.base.drops_remote && bucket - args.first_expert < args.base.num_experts) {
    const auto local = static_cast<std::uint32_t>(args.base.expert_map[bucket - args.first_expert]);
    bucket = local < args.base.num_experts ? local + args.first_expert : unplaced_bucket(args);
  }
  return bucket;
}

}  // namespace tessera::cuda
