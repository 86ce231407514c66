// At most 32 ids: the threads of one CTA fill the outputs, and then one warp places the ids. If the
// call requests reports, a second CTA finds the same groups and reports on them.
#include "cuda/align_block_size/buckets.cuh"
#include "cuda/align_block_size/instances.hpp"
#include "cuda/align_block_size/outputs.cuh"
#include "cuda/align_block_size/reports.cuh"
#include "cuda/parts/fill.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr std::uint32_t kMaxMapEntries = 4096;

/// The id of a lane among the ids of its group.
struct LaneGroup {
  std::uint32_t bucket;
  std::uint32_t peers;  // lanes of the same bucket
  int rank;             // among the peers
  std::int32_t num_blocks;
  std::int32_t first_block;
  std::int32_t total_blocks;  // of all groups
  bool is_placed;
  bool leads_group;  // the first lane of its group
};

__device__ __forceinline__ std::uint32_t lanes_of_bucket(std::uint32_t bucket, int num_bits) {
  constexpr int kBatch = 3;  // votes in flight; a vote on a bit that no bucket has changes nothing
  std::uint32_t lanes = kAllLanes;
  for (int first = 0; first < num_bits; first += kBatch) {
#pragma unroll
    for (int bit = first; bit < first + kBatch; ++bit) {
      const bool is_set = (bucket >> min(bit, 31)) & 1;  // no bucket has bit 31
      const std::uint32_t with_bit = __ballot_sync(kAllLanes, is_set);
      lanes &= is_set ? with_bit : ~with_bit;
    }
  }
  return lanes;
}

template <typename Args>
__device__ __forceinline__ void fill_outputs(const Args& args, int thread, int num_threads) {
  fill(args.base.sorted_token_ids, 0, args.base.sorted_token_ids_length, args.base.num_ids, thread,
       num_threads);
  fill(args.base.expert_ids, 0, args.base.expert_ids_length, shown_tail(args), thread, num_threads);
  if (args.base.expert_counts != nullptr) {
    fill(args.base.expert_counts, 0, args.base.num_experts, 0, thread, num_threads);
  }
}

template <typename Args>
__device__ __forceinline__ LaneGroup find_group(const Args& args, std::uint32_t bucket, int lane) {
  LaneGroup group{};
  group.bucket = bucket;
  group.peers = lanes_of_bucket(bucket, 32 - __clz(unplaced_bucket(args)));
  group.rank = __popc(group.peers & ((1u << lane) - 1));
  group.is_placed = bucket < num_groups_of(args);
  group.leads_group = group.is_placed && group.rank == 0;
  group.num_blocks = group.leads_group ? blocks_of(args.base, __popc(group.peers)) : 0;
  constexpr int kBatch = 8;  // lanes without an id have no blocks
  for (int first = 0; first < args.base.num_ids; first += kBatch) {
#pragma unroll
    for (int other = first; other < first + kBatch; ++other) {
      const std::uint32_t other_bucket = __shfl_sync(kAllLanes, bucket, other);
      const std::int32_t other_blocks = __shfl_sync(kAllLanes, group.num_blocks, other);
      group.total_blocks += other_blocks;
      if (other_bucket < bucket) group.first_block += other_blocks;
    }
  }
  return group;
}

template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void write_reports(const Args& args, const LaneGroup& group, int lane) {
  if (args.statistics != nullptr) {
    const std::uint32_t count = group.leads_group ? __popc(group.peers) : 0;
    const Loads loads = loads_of_warp(args, group.bucket, count);
    if (lane == 0) write_statistics(args, loads, group.total_blocks);
  }
  if (args.validation != nullptr) {
    bool has_invalid_entry = false;
    if (args.base.expert_map != nullptr) {
#pragma unroll 8
      for (std::uint32_t expert = lane; expert < args.base.num_experts; expert += 32) {
        has_invalid_entry |= is_invalid_entry(args.base, expert);
      }
      has_invalid_entry = __any_sync(kAllLanes, has_invalid_entry);
    }
    const std::uint32_t dropped = __ballot_sync(kAllLanes, group.bucket == dropped_bucket(args));
    report_validation<kWidth>(args, __popc(dropped), 0, has_invalid_entry, lane);
  }
}

template <typename Args>
__device__ __forceinline__ void place(const Args& args, const LaneGroup& group, int lane) {
  if (group.is_placed) {
    place_id(args, group.first_block * args.base.block_size + group.rank, lane);
  } else if (args.slots_of_ids != nullptr && lane < args.base.num_ids) {
    args.slots_of_ids[lane] = -1;
  }
  if (group.leads_group) {
    const std::int32_t expert = shown_expert(args, group.bucket);
    for (int k = 0; k < group.num_blocks; ++k) {
      args.base.expert_ids[group.first_block + k] = expert;
    }
    store_count(args, group.bucket, __popc(group.peers));
  }
  const std::uint32_t dropped = __ballot_sync(kAllLanes, group.bucket == dropped_bucket(args));
  if (lane == 0) {
    *args.base.num_tokens_post_pad = group.total_blocks * args.base.block_size;
    if (args.base.num_dropped != nullptr) *args.base.num_dropped = __popc(dropped);
  }
}

template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void run(const Args& args, bool is_reporter) {
  const int thread = threadIdx.x;
  const int num_threads = blockDim.x;
  const int lane = thread % 32;
  pdl_launch_dependents();
  pdl_wait();

  RawId<kWidth> id{};
  if (lane < args.base.num_ids) id = load_id<kWidth>(args.base, lane);
  // A large map has more entries than 32 ids are worth.
  if (args.base.num_experts <= kMaxMapEntries) prefetch_map(args.base, thread, num_threads);
  if (!is_reporter) fill_outputs(args, thread, num_threads);
  __syncthreads();
  if (thread >= 32) return;

  const std::uint32_t bucket =
      lane < args.base.num_ids ? bucket_of<kWidth>(args, id) : unplaced_bucket(args);
  const LaneGroup group = find_group(args, bucket, lane);
  if (is_reporter) {
    write_reports<kWidth>(args, group, lane);
  } else {
    place(args, group, lane);
  }
}

template <IdWidth kWidth, typename Args>
__global__ void __launch_bounds__(kMaxThreads) few_kernel(const __grid_constant__ Args args) {
  const bool is_reporter = has_reporter(args) && blockIdx.x == 1;
  if (!is_reporter && writes_plainly(args)) {
    run<kWidth>(AlignBlockSizePlainArgs{args.base}, false);
  } else {
    run<kWidth>(args, is_reporter);
  }
}

/// The number of threads is an argument of the launch, not of the instance.
template <int kNumThreads>
constexpr InstanceRow kRow{kNumThreads,
                           {few_kernel<IdWidth::kNarrow, AlignBlockSizePlainArgs>,
                            few_kernel<IdWidth::k32, AlignBlockSizePlainArgs>,
                            few_kernel<IdWidth::k64, AlignBlockSizePlainArgs>},
                           {few_kernel<IdWidth::kNarrow, AlignBlockSizeExtendedArgs>,
                            few_kernel<IdWidth::k32, AlignBlockSizeExtendedArgs>,
                            few_kernel<IdWidth::k64, AlignBlockSizeExtendedArgs>}};

}  // namespace

const void* align_block_size_few_kernel(const Instance& instance) {
  static constexpr InstanceRow kRows[] = {kRow<64>, kRow<128>, kRow<kMaxThreads>};
  return find_instance(kRows, instance);
}

}  // namespace tessera::cuda
