// How the kernels of align_block_size report on their input: `statistics` and `validation`.
#pragma once

#include <cstdint>

#include "cuda/align_block_size/layout.hpp"
#include "cuda/align_block_size/outputs.cuh"
#include "cuda/parts/fill.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"
#include "tessera/align_block_size.hpp"

namespace tessera::cuda {

/// Sums over the groups' sizes.
struct Loads {
  std::uint32_t assigned_pairs;
  std::uint32_t active_experts;
  std::uint32_t max_load;
  std::uint32_t filtered_pairs;
};

/// The loads of 32 groups, one per lane; every lane gets them.
template <typename Args>
__device__ __forceinline__ Loads loads_of_warp(const Args& args, std::int64_t group,
                                               std::uint32_t count) {
  const bool is_filtered = group < args.first_expert;
  const std::uint32_t load = is_filtered ? 0 : count;
  return {__reduce_add_sync(kAllLanes, load),
          static_cast<std::uint32_t>(__popc(__ballot_sync(kAllLanes, load != 0))),
          __reduce_max_sync(kAllLanes, load),
          __reduce_max_sync(kAllLanes, is_filtered ? count : 0)};
}

/// Adds 32 groups, one per lane, to `loads` in shared memory. A lane without a group has count 0.
template <typename Args>
__device__ __forceinline__ void add_loads(const Args& args, Loads* loads, std::int64_t group,
                                          std::uint32_t count, int lane) {
  const Loads own = loads_of_warp(args, group, count);
  if (lane != 0) return;
  atomicAdd(&loads->assigned_pairs, own.assigned_pairs);
  atomicAdd(&loads->active_experts, own.active_experts);
  atomicMax(&loads->max_load, own.max_load);
  atomicAdd(&loads->filtered_pairs, own.filtered_pairs);
}

/// `dividend` / num_experts, rounded as IEEE 754 rounds a quotient, from the rounded reciprocal
/// (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", IBM J.
/// Res. Dev. 34, 1990). Takes a quarter of the time of a division.
template <typename Args>
__device__ __forceinline__ double per_expert(const Args& args, double dividend) {
  const double divisor = args.base.num_experts;
  double quotient = dividend * args.reciprocal_of_experts;
#pragma unroll
  for (int step = 0; step < 2; ++step) {
    const double remainder = __fma_rn(-quotient, divisor, dividend);
    quotient = __fma_rn(remainder, args.reciprocal_of_experts, quotient);
  }
  return quotient;
}

/// Writes `statistics`. Called by one thread.
template <typename Args>
__device__ __forceinline__ void write_statistics(const Args& args, const Loads& loads,
                                                 std::uint32_t total_blocks) {
  const auto write = [&](AlignBlockSizeStatistic which, double value) {
    args.statistics[static_cast<int>(which)] = value;
  };
  const std::uint32_t num_slots = total_blocks * static_cast<std::uint32_t>(args.base.block_size);
  write(AlignBlockSizeStatistic::kAssignedPairs, loads.assigned_pairs);
  write(AlignBlockSizeStatistic::kActiveExperts, loads.active_experts);
  write(AlignBlockSizeStatistic::kUsedBlocks, total_blocks);
  write(AlignBlockSizeStatistic::kPaddingSlots,
        num_slots - loads.assigned_pairs - loads.filtered_pairs);
  write(AlignBlockSizeStatistic::kMaxLoad, loads.max_load);
  write(AlignBlockSizeStatistic::kMeanLoad, per_expert(args, loads.assigned_pairs));
}

/// The invalid ids and map entries of a call. A position is meaningful only if there is one.
struct InvalidInputs {
  std::uint32_t num_ids;
  std::int64_t first_id;  ///< position in topk_ids
  std::uint32_t num_entries;
  std::uint32_t first_entry;  ///< position in expert_map
};

__device__ __forceinline__ bool is_invalid_entry(const AlignBlockSizeKernelArgs& args,
                                                 std::uint32_t expert) {
  // Read as unsigned, -1 is the largest number.
  return static_cast<std::uint32_t>(args.expert_map[expert]) + 1 > args.num_experts;
}

/// Sets a flag in shared memory if a map entry is invalid. Called by all threads of a CTA.
__device__ __forceinline__ void flag_invalid_entries(const AlignBlockSizeKernelArgs& args,
                                                     bool* has_invalid_entry, int num_threads) {
  if (args.expert_map == nullptr) return;
#pragma unroll 4
  for (std::uint32_t expert = threadIdx.x; expert < args.num_experts; expert += num_threads) {
    if (is_invalid_entry(args, expert)) *has_invalid_entry = true;
  }
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

/// Writes `validation`. Called by one thread.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void write_validation(const Args& args, const InvalidInputs& invalid) {
  const auto write = [&](AlignBlockSizeValidation which, std::int64_t value) {
    args.validation[static_cast<int>(which)] = value;
  };
  const bool has_id = invalid.num_ids != 0;
  const bool has_entry = invalid.num_entries != 0;
  write(AlignBlockSizeValidation::kNumInvalidIds, invalid.num_ids);
  write(AlignBlockSizeValidation::kFirstInvalidId, has_id ? invalid.first_id : -1);
  write(AlignBlockSizeValidation::kFirstInvalidIdValue,
        has_id ? value_of<kWidth>(
                     args, load_id<kWidth>(args.base, static_cast<std::int32_t>(invalid.first_id)))
               : 0);
  write(AlignBlockSizeValidation::kNumInvalidMapEntries, invalid.num_entries);
  write(AlignBlockSizeValidation::kFirstInvalidMapEntry,
        has_entry ? std::int64_t{invalid.first_entry} : -1);
  write(AlignBlockSizeValidation::kFirstInvalidMapEntryValue,
        has_entry ? std::int64_t{args.base.expert_map[invalid.first_entry]} : 0);
}

/// The position of the first invalid id from `first` on. If there is none any more, because the ids
/// changed since they were counted, the last position. Called by one warp.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ std::int64_t first_invalid_id(const Args& args, std::int64_t first,
                                                         int lane) {
  constexpr int kBatch = 8;  // loads in flight
  for (; first < args.base.num_ids; first += 32 * kBatch) {
    bool is_invalid[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const std::int64_t i = first + 32 * k + lane;
      is_invalid[k] =
          i < args.base.num_ids &&
          bucket_of<kWidth>(args, load_id<kWidth>(args.base, i)) == dropped_bucket(args);
    }
#pragma unroll
    for (int k = 0; k < kBatch; ++k) {
      const std::uint32_t invalid = __ballot_sync(kAllLanes, is_invalid[k]);
      if (invalid != 0) return first + 32 * k + __ffs(static_cast<int>(invalid)) - 1;
    }
  }
  return args.base.num_ids - 1;
}

/// Writes `validation` from what all lanes know: the number of invalid ids, a position at or before
/// the first of them, and whether a map entry is invalid. Positions are searched for only if
/// something is invalid. Called by one warp.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void report_validation(const Args& args, std::uint32_t num_invalid_ids,
                                                  std::int64_t first, bool has_invalid_entry,
                                                  int lane) {
  InvalidInputs invalid = {num_invalid_ids, 0, 0, ~0u};
  if (num_invalid_ids != 0) invalid.first_id = first_invalid_id<kWidth>(args, first, lane);
  if (has_invalid_entry) {
    for (std::uint32_t expert = lane; expert < args.base.num_experts; expert += 32) {
      if (!is_invalid_entry(args.base, expert)) continue;
      ++invalid.num_entries;
      invalid.first_entry = min(invalid.first_entry, expert);
    }
    invalid.num_entries = __reduce_add_sync(kAllLanes, invalid.num_entries);
    invalid.first_entry = __reduce_min_sync(kAllLanes, invalid.first_entry);
  }
  if (lane == 0) write_validation<kWidth>(args, invalid);
}

/// Whether a launch of a kernel without a barrier across the grid has a reporter: one more CTA,
/// which only reports.
template <typename Args>
__device__ __forceinline__ bool has_reporter(const Args& args) {
  return args.statistics != nullptr || args.validation != nullptr;
}

/// Static shared memory of the reporter.
struct ReportStorage {
  Loads loads;
  std::uint32_t total_blocks;
  bool has_invalid_entry;
};

/// The reporter's work: it counts all ids itself while the other CTAs place them. `counts` is a row
/// of counters in shared memory.
template <IdWidth kWidth, int kNumThreads, typename Args>
__device__ __forceinline__ void report(const Args& args, std::uint32_t* counts,
                                       ReportStorage& storage) {
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int num_groups = num_groups_of(args);
  clear_shared(counts, counters_per_row(num_groups) * 4, thread, kNumThreads);
  if (thread == 0) {
    storage.loads = {};
    storage.total_blocks = 0;
    storage.has_invalid_entry = false;
  }
  __syncthreads();
  pdl_wait();
#pragma unroll 8
  for (std::int32_t i = thread; i < args.base.num_ids; i += kNumThreads) {
    atomicAdd(&counts[bucket_of<kWidth>(args, load_id<kWidth>(args.base, i))], 1u);
  }
  if (args.validation != nullptr) {
    flag_invalid_entries(args.base, &storage.has_invalid_entry, kNumThreads);
  }
  __syncthreads();
  for (int base = 0; base < num_groups; base += kNumThreads) {
    const int group = base + thread;
    const std::uint32_t count = group < num_groups ? counts[group] : 0;
    add_loads(args, &storage.loads, group, count, lane);
    const std::int32_t num_blocks = __reduce_add_sync(kAllLanes, blocks_of(args.base, count));
    if (lane == 0) atomicAdd(&storage.total_blocks, static_cast<std::uint32_t>(num_blocks));
  }
  __syncthreads();
  if (thread == 0 && args.statistics != nullptr) {
    write_statistics(args, storage.loads, storage.total_blocks);
  }
  if (thread >= kNumThreads - 32 && args.validation != nullptr) {
    report_validation<kWidth>(args, counts[dropped_bucket(args)], 0, storage.has_invalid_entry,
                              lane);
  }
}

}  // namespace tessera::cuda
