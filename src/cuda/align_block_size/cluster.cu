// One thread block cluster: every CTA counts its own ids, and reads the others' counts from their
// shared memory. Compute capability 9.0 and above.
#include <cooperative_groups.h>

#include <utility>

#include "cuda/align_block_size/reports.cuh"

namespace tessera::cuda {
namespace {

constexpr int kNumThreads = 256;
#if __CUDA_ARCH__ >= 900
constexpr int kNumWarps = kNumThreads / 32;
constexpr int kMaxRounds = kClusterMaxIdsPerThread;

/// What one of the CTAs does that place ids.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void place(const Args& args, int num_ctas, unsigned char* shared,
                                      std::int32_t* warp_sums) {
  const auto cluster = cooperative_groups::this_cluster();
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int cta = blockIdx.x;
  const int num_groups = num_groups_of(args);
  const int row_length = counters_per_row(num_groups);
  const int rounds = args.ids_per_thread;
  const std::int32_t cta_first = cta * args.ids_per_cta;
  const std::int32_t cta_end = min(args.num_ids, cta_first + args.ids_per_cta);
  const int num_rows = max(0, (cta_end - cta_first + 32 * rounds - 1) / (32 * rounds));
  auto* const totals = reinterpret_cast<std::uint32_t*>(shared);  // of this CTA; others read it
  auto* const starts = reinterpret_cast<std::int32_t*>(totals + row_length);
  auto* const first_blocks = starts + row_length;
  auto* const group_sizes = reinterpret_cast<std::uint32_t*>(first_blocks + row_length);
  std::uint32_t* const masks = group_sizes + row_length;
  auto* const counts = reinterpret_cast<std::uint16_t*>(masks + kNumWarps * row_length);

  let_successor_start();
  clear_shared(masks, num_rows * row_length * 4, thread, kNumThreads);
  clear_shared(counts, num_rows * row_length * 2, thread, kNumThreads);
  __syncthreads();
  wait_for_predecessor();

  const std::int32_t first = cta_first + warp * 32 * rounds + lane;
  RawId<kWidth> ids[kMaxRounds];
#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    const std::int32_t i = first + round * 32;
    if (round < rounds && i < cta_end) ids[round] = load_id<kWidth>(args, i);
  }
  fetch_map(args, thread, kNumThreads);
  const int grid_thread = cta * kNumThreads + thread;
  const int grid_threads = num_ctas * kNumThreads;
  fill(args.sorted_token_ids, 0, args.sorted_token_ids_length, args.num_ids, grid_thread,
       grid_threads);
  std::uint32_t buckets[kMaxRounds];
  std::uint32_t ranks[kMaxRounds];
#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    if (round >= rounds || warp >= num_rows) break;
    buckets[round] =
        first + round * 32 < cta_end ? bucket_of<kWidth>(args, ids[round]) : unplaced_bucket(args);
    ranks[round] =
        rank_in_warp(counts + warp * row_length, masks + warp * row_length, buckets[round], lane);
  }
  __syncthreads();
  for (std::uint32_t bucket = thread; bucket <= dropped_bucket(args); bucket += kNumThreads) {
    totals[bucket] = scan_column(counts, row_length, num_rows, bucket);
  }
  cluster.sync();

  std::int32_t total_blocks = 0;
  for (int base = 0; base < num_groups; base += kNumThreads) {
    const int group = base + thread;
    const bool exists = group < num_groups;
    std::uint32_t count = 0;
    std::uint32_t before = 0;
    if (exists) {
      std::uint32_t counts_of[kClusterMaxCtas];
#pragma unroll
      for (int other = 0; other < kClusterMaxCtas; ++other) {
        counts_of[other] = other < num_ctas ? *cluster.map_shared_rank(&totals[group], other) : 0;
      }
#pragma unroll
      for (int other = 0; other < kClusterMaxCtas; ++other) {
        count += counts_of[other];
        if (other < cta) before += counts_of[other];
      }
    }
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        total_blocks +
        exclusive_sum<kNumWarps>(blocks_of(args, count), warp_sums, lane, warp, &chunk_blocks);
    if (exists) {
      starts[group] = first_block * args.block_size + before;
      first_blocks[group] = first_block;
      group_sizes[group] = count;
      if (cta == 0) store_count(args, group, count);
    }
    total_blocks += chunk_blocks;
    __syncthreads();
  }
  std::uint32_t num_dropped = 0;
  if (cta == 0 && thread < num_ctas) {
    num_dropped = *cluster.map_shared_rank(&totals[dropped_bucket(args)], thread);
  }
  // A CTA's shared memory must outlive the others' reads of it.
  auto&& token = cluster.barrier_arrive();

#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    if (round >= rounds || warp >= num_rows) break;
    const std::uint32_t bucket = buckets[round];
    if (bucket < num_groups_of(args)) {
      args.sorted_token_ids[starts[bucket] + counts[warp * row_length + bucket] + ranks[round]] =
          first + round * 32;
    }
  }
  for (int group = cta + num_ctas * warp; group < num_groups; group += num_ctas * kNumWarps) {
    finish_group(args, group, first_blocks[group], group_sizes[group], false, lane);
  }
  fill(args.expert_ids, total_blocks, args.expert_ids_length, shown_tail(args), grid_thread,
       grid_threads);
  if (cta == 0 && warp == 0) {
    num_dropped = __reduce_add_sync(kAllLanes, num_dropped);
    if (lane == 0) {
      *args.num_tokens_post_pad = total_blocks * args.block_size;
      if (args.num_dropped != nullptr) *args.num_dropped = num_dropped;
    }
  }
  cluster.barrier_wait(std::move(token));
}
#endif

/// Where something is to be reported, there is a second cluster, whose first CTA does that.
template <IdWidth kWidth, typename Args>
__global__ void __launch_bounds__(kNumThreads) cluster_kernel(const __grid_constant__ Args args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ std::int32_t warp_sums[32];
  const int num_ctas = has_reporter(args) ? gridDim.x / 2 : gridDim.x;
  const int cta = blockIdx.x;
  if (has_reporter(args) && cta >= num_ctas) {
    let_successor_start();
    if (cta > num_ctas) return;
    report<kWidth, kNumThreads>(args, reinterpret_cast<std::uint32_t*>(shared), threadIdx.x);
  } else if (places_plainly(args)) {
    place<kWidth>(AlignBlockSizePlainArgs{args}, num_ctas, shared, warp_sums);
  } else {
    place<kWidth>(args, num_ctas, shared, warp_sums);
  }
#endif
}

}  // namespace

const void* align_block_size_cluster_kernel(IdWidth width, int num_threads, bool is_extended) {
  return choose_instance<kNumThreads>(
      width, num_threads, is_extended, [](auto id_width, auto, auto args) {
        return &cluster_kernel<id_width(), typename decltype(args)::type>;
      });
}

}  // namespace tessera::cuda
