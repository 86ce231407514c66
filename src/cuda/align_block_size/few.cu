// A handful of ids: all threads of one CTA fill the outputs, then one warp places the ids. Where
// something is to be reported, a second CTA does that.
#include "cuda/align_block_size/reports.cuh"

namespace tessera::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr std::uint32_t kMaxMapEntries = 4096;

/// The lanes of the warp that have this lane's bucket.
__device__ __forceinline__ std::uint32_t lanes_of_bucket(std::uint32_t bucket, int num_bits) {
  constexpr int kBatch = 3;  // votes in flight; those on bits that no bucket has change nothing
  std::uint32_t lanes = kAllLanes;
  for (int first = 0; first < num_bits; first += kBatch) {
#pragma unroll
    for (int bit = first; bit < first + kBatch; ++bit) {
      const bool is_set = (bucket >> bit) & 1;
      const std::uint32_t with_bit = __ballot_sync(kAllLanes, is_set);
      lanes &= is_set ? with_bit : ~with_bit;
    }
  }
  return lanes;
}

/// The first CTA places, a second one reports.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void place_or_report(const Args& args, bool is_reporter) {
  const int thread = threadIdx.x;
  const int num_threads = blockDim.x;
  const int lane = thread % 32;
  let_successor_start();
  wait_for_predecessor();

  RawId<kWidth> id{};
  if (lane < args.num_ids) id = load_id<kWidth>(args, lane);
  // Of 32 ids at most, the entries between which they may lie are not all worth fetching.
  if (args.num_experts <= kMaxMapEntries) fetch_map(args, thread, num_threads);
  if (!is_reporter) {
    fill(args.sorted_token_ids, 0, args.sorted_token_ids_length, args.num_ids, thread, num_threads);
    fill(args.expert_ids, 0, args.expert_ids_length, shown_tail(args), thread, num_threads);
    if (args.expert_counts != nullptr) {
      fill(args.expert_counts, 0, args.num_experts, 0, thread, num_threads);
    }
  }
  __syncthreads();
  if (thread >= 32) return;

  const std::uint32_t bucket =
      lane < args.num_ids ? bucket_of<kWidth>(args, id) : unplaced_bucket(args);
  const std::uint32_t peers = lanes_of_bucket(bucket, 32 - __clz(unplaced_bucket(args)));
  const int rank = __popc(peers & ((1u << lane) - 1));
  const bool is_placed = bucket < num_groups_of(args);
  const bool leads_group = is_placed && rank == 0;
  const std::int32_t num_blocks = leads_group ? blocks_of(args, __popc(peers)) : 0;
  std::int32_t first_block = 0;
  std::int32_t total_blocks = 0;
  constexpr int kBatch = 8;  // lanes without an id have no blocks
  for (int first = 0; first < args.num_ids; first += kBatch) {
#pragma unroll
    for (int other = first; other < first + kBatch; ++other) {
      const std::uint32_t other_bucket = __shfl_sync(kAllLanes, bucket, other);
      const std::int32_t other_blocks = __shfl_sync(kAllLanes, num_blocks, other);
      total_blocks += other_blocks;
      if (other_bucket < bucket) first_block += other_blocks;
    }
  }

  if (is_reporter) {
    if (args.statistics != nullptr) {
      // A group a lane: that of the id that leads it.
      const Loads loads = loads_of_warp(args, bucket, leads_group ? __popc(peers) : 0);
      if (lane == 0) write_statistics(args, loads, total_blocks);
    }
    if (args.validation != nullptr) {
      bool has_invalid_entry = false;
      if (args.expert_map != nullptr) {
#pragma unroll 8
        for (std::uint32_t expert = lane; expert < args.num_experts; expert += 32) {
          has_invalid_entry |= is_invalid_entry(args, expert);
        }
        has_invalid_entry = __any_sync(kAllLanes, has_invalid_entry);
      }
      const std::uint32_t dropped = __ballot_sync(kAllLanes, bucket == dropped_bucket(args));
      report_validation<kWidth>(args, __popc(dropped), 0, has_invalid_entry, lane);
    }
    return;
  }

  if (is_placed) args.sorted_token_ids[first_block * args.block_size + rank] = lane;
  if (leads_group) {
    const std::int32_t expert = shown_expert(args, bucket);
    for (int k = 0; k < num_blocks; ++k) args.expert_ids[first_block + k] = expert;
    store_count(args, bucket, __popc(peers));
  }
  const std::uint32_t dropped = __ballot_sync(kAllLanes, bucket == dropped_bucket(args));
  if (lane == 0) {
    *args.num_tokens_post_pad = total_blocks * args.block_size;
    if (args.num_dropped != nullptr) *args.num_dropped = __popc(dropped);
  }
}

template <IdWidth kWidth, typename Args>
__global__ void __launch_bounds__(kMaxThreads) few_kernel(const __grid_constant__ Args args) {
  const bool is_reporter = has_reporter(args) && blockIdx.x == 1;
  if (!is_reporter && places_plainly(args)) {
    place_or_report<kWidth>(AlignBlockSizePlainArgs{args}, false);
  } else {
    place_or_report<kWidth>(args, is_reporter);
  }
}

}  // namespace

const void* align_block_size_few_kernel(IdWidth width, int num_threads, bool is_extended) {
  return choose_instance<64, 128, kMaxThreads>(
      width, num_threads, is_extended, [](auto id_width, auto, auto args) {
        return &few_kernel<id_width(), typename decltype(args)::type>;
      });
}

}  // namespace tessera::cuda
