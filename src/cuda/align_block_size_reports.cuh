// What the kernels of align_block_size tell about their input: `statistics` and `validation`.
#pragma once

#include "cuda/align_block_size_device.cuh"
#include "tessera/align_block_size.hpp"

namespace tessera::cuda {

/// The groups' sizes, added up.
struct Loads {
  std::uint32_t assigned_pairs;
  std::uint32_t active_experts;
  std::uint32_t max_load;
  std::uint32_t filtered_pairs;
};

/// Those of one group a lane; by whole warps, for all lanes.
template <typename Args>
__device__ __forceinline__ Loads loads_of_warp(const Args& args, bool exists, std::uint32_t group,
                                               std::uint32_t count) {
  const bool is_expert = static_cast<std::int32_t>(group) >= args.first_expert;
  const std::uint32_t load = exists && is_expert ? count : 0;
  return {__reduce_add_sync(kAllLanes, load),
          static_cast<std::uint32_t>(__popc(__ballot_sync(kAllLanes, load != 0))),
          __reduce_max_sync(kAllLanes, load),
          __reduce_max_sync(kAllLanes, exists && !is_expert ? count : 0)};
}

/// Adds them to `loads` in shared memory, which are zero at first.
template <typename Args>
__device__ __forceinline__ void add_loads(const Args& args, Loads* loads, bool exists,
                                          std::uint32_t group, std::uint32_t count, int lane) {
  const Loads own = loads_of_warp(args, exists, group, count);
  if (lane != 0) return;
  atomicAdd(&loads->assigned_pairs, own.assigned_pairs);
  atomicAdd(&loads->active_experts, own.active_experts);
  atomicMax(&loads->max_load, own.max_load);
  atomicAdd(&loads->filtered_pairs, own.filtered_pairs);
}

/// By one thread.
template <typename Args>
__device__ __forceinline__ void write_statistics(const Args& args, const Loads& loads,
                                                 std::uint32_t total_blocks) {
  const auto write = [&](AlignBlockSizeStatistic which, double value) {
    args.statistics[static_cast<int>(which)] = value;
  };
  const std::uint32_t num_slots = total_blocks * static_cast<std::uint32_t>(args.block_size);
  write(AlignBlockSizeStatistic::kAssignedPairs, loads.assigned_pairs);
  write(AlignBlockSizeStatistic::kActiveExperts, loads.active_experts);
  write(AlignBlockSizeStatistic::kUsedBlocks, total_blocks);
  write(AlignBlockSizeStatistic::kPaddingSlots,
        num_slots - loads.assigned_pairs - loads.filtered_pairs);
  write(AlignBlockSizeStatistic::kMaxLoad, loads.max_load);
  write(AlignBlockSizeStatistic::kMeanLoad,
        static_cast<double>(loads.assigned_pairs) / static_cast<double>(args.num_experts));
}

/// What is invalid among ids and map entries; in shared memory.
struct Findings {
  std::uint32_t num_ids;
  std::uint32_t first_id;  ///< position in topk_ids
  std::uint32_t num_entries;
  std::uint32_t first_entry;  ///< position in expert_map
};

__device__ __forceinline__ bool is_invalid_entry(const AlignBlockSizeKernelArgs& args,
                                                 std::uint32_t expert) {
  // Taken as unsigned, -1 is the largest number.
  return static_cast<std::uint32_t>(args.expert_map[expert]) + 1 > args.num_experts;
}

template <IdWidth kWidth, typename Args>
__device__ __forceinline__ std::int64_t value_of(const Args& args, RawId<kWidth> id) {
  if constexpr (kWidth == IdWidth::k64) {
    return static_cast<std::int64_t>(id);
  } else if constexpr (kWidth == IdWidth::k32) {
    return args.id_is_signed ? std::int64_t{static_cast<std::int32_t>(id)} : std::int64_t{id};
  } else {
    const std::uint32_t sign = args.id_is_signed ? (args.id_mask >> 1) + 1 : 0;
    return static_cast<std::int64_t>(id ^ sign) - static_cast<std::int64_t>(sign);
  }
}

/// By one thread.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void write_validation(const Args& args, const Findings& found) {
  const auto write = [&](AlignBlockSizeValidation which, std::int64_t value) {
    args.validation[static_cast<int>(which)] = value;
  };
  const bool has_id = found.num_ids != 0;
  const bool has_entry = found.num_entries != 0;
  write(AlignBlockSizeValidation::kNumInvalidIds, found.num_ids);
  write(AlignBlockSizeValidation::kFirstInvalidId, has_id ? std::int64_t{found.first_id} : -1);
  write(AlignBlockSizeValidation::kFirstInvalidIdValue,
        has_id ? value_of<kWidth>(args, load_id<kWidth>(args, found.first_id)) : 0);
  write(AlignBlockSizeValidation::kNumInvalidMapEntries, found.num_entries);
  write(AlignBlockSizeValidation::kFirstInvalidMapEntry,
        has_entry ? std::int64_t{found.first_entry} : -1);
  write(AlignBlockSizeValidation::kFirstInvalidMapEntryValue,
        has_entry ? std::int64_t{args.expert_map[found.first_entry]} : 0);
}

/// Finds the first invalid id of [first, end), by all threads of one CTA. Two barriers.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void find_first_invalid(const Args& args, Findings* found,
                                                   std::int64_t first, std::int64_t end, int thread,
                                                   int num_threads) {
  if (thread == 0) found->first_id = ~0u;
  __syncthreads();
  for (std::int64_t i = first + thread; i < end; i += num_threads) {
    if (bucket_of<kWidth>(args, load_id<kWidth>(args, static_cast<std::int32_t>(i))) !=
        dropped_bucket(args)) {
      continue;
    }
    atomicMin(&found->first_id, static_cast<std::uint32_t>(i));
    break;
  }
  __syncthreads();
}

/// Writes `validation`, by all threads of one CTA. Of thread 0: how many ids are invalid, and from
/// which id on the first of them is among `num_candidates`. Only where there are any, ids are
/// looked at again.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void validate(const Args& args, Findings* found,
                                         std::uint32_t num_invalid_ids, std::uint32_t first,
                                         std::uint32_t num_candidates, int thread,
                                         int num_threads) {
  if (thread == 0) *found = {num_invalid_ids, first, 0, ~0u};
  __syncthreads();
  if (found->num_ids != 0) {
    const std::int64_t begin = found->first_id;
    __syncthreads();
    find_first_invalid<kWidth>(args, found, begin,
                               min(std::int64_t{args.num_ids}, begin + num_candidates), thread,
                               num_threads);
  }
  if (args.expert_map != nullptr) {
#pragma unroll 4
    for (std::uint32_t expert = thread; expert < args.num_experts; expert += num_threads) {
      if (!is_invalid_entry(args, expert)) continue;
      atomicAdd(&found->num_entries, 1u);
      atomicMin(&found->first_entry, expert);
    }
  }
  __syncthreads();
  if (thread == 0) write_validation<kWidth>(args, *found);
}

}  // namespace tessera::cuda
