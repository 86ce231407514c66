// One CTA, and where something is to be reported a second one: every warp ranks its ids, the CTA
// lays the groups out, every thread places its ids.
#include "cuda/align_block_size/reports.cuh"

namespace tessera::cuda {
namespace {

constexpr int kMaxRounds = kOneCtaMaxIdsPerThread;

template <IdWidth kWidth, int kNumThreads, typename Args>
__global__ void __launch_bounds__(kNumThreads) one_cta_kernel(const __grid_constant__ Args args) {
  constexpr int kNumWarps = kNumThreads / 32;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ std::int32_t warp_sums[32];
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int num_groups = num_groups_of(args);
  const int row_length = counters_per_row(num_groups);
  const int rounds = args.ids_per_thread;
  const int num_rows = (args.num_ids + 32 * rounds - 1) / (32 * rounds);
  auto* const counts = reinterpret_cast<std::uint16_t*>(shared);
  auto* const masks = reinterpret_cast<std::uint32_t*>(counts + kNumWarps * row_length);
  auto* const starts = reinterpret_cast<std::int32_t*>(masks + kNumWarps * row_length);

  let_successor_start();
  fetch_args(args);
  if (has_reporter(args) && blockIdx.x == 1) {
    report<kWidth, kNumThreads>(args, masks, thread);
    return;
  }
  clear_shared(counts, num_rows * row_length * 2, thread, kNumThreads);
  clear_shared(masks, num_rows * row_length * 4, thread, kNumThreads);
  __syncthreads();
  wait_for_predecessor();

  const std::int32_t first = warp * 32 * rounds + lane;
  RawId<kWidth> ids[kMaxRounds];
#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    const std::int32_t i = first + round * 32;
    if (round < rounds && i < args.num_ids) ids[round] = load_id<kWidth>(args, i);
  }
  fetch_map(args, thread, kNumThreads);
  fill(args.sorted_token_ids, 0, args.sorted_token_ids_length, args.num_ids, thread, kNumThreads);
  std::uint32_t buckets[kMaxRounds];
  std::uint32_t ranks[kMaxRounds];
#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    if (round >= rounds || warp >= num_rows) break;
    buckets[round] = first + round * 32 < args.num_ids ? bucket_of<kWidth>(args, ids[round])
                                                       : unplaced_bucket(args);
    ranks[round] =
        rank_in_warp(counts + warp * row_length, masks + warp * row_length, buckets[round], lane);
  }
  __syncthreads();

  std::int32_t total_blocks = 0;
  for (int base = 0; base < num_groups; base += kNumThreads) {
    const int group = base + thread;
    const bool exists = group < num_groups;
    const std::uint32_t count = exists ? scan_column(counts, row_length, num_rows, group) : 0;
    const std::int32_t num_blocks = blocks_of(args, count);
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        total_blocks + exclusive_sum<kNumWarps>(num_blocks, warp_sums, lane, warp, &chunk_blocks);
    if (exists) {
      starts[group] = first_block * args.block_size;
      store_count(args, group, count);
      const std::int32_t shown = num_blocks != 0 ? shown_expert(args, group) : 0;
      for (int k = 0; k < num_blocks; ++k) args.expert_ids[first_block + k] = shown;
    }
    total_blocks += chunk_blocks;
    __syncthreads();
  }

#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    if (round >= rounds || warp >= num_rows) break;
    const std::uint32_t bucket = buckets[round];
    if (bucket < num_groups_of(args)) {
      args.sorted_token_ids[starts[bucket] + counts[warp * row_length + bucket] + ranks[round]] =
          first + round * 32;
    }
  }
  fill(args.expert_ids, total_blocks, args.expert_ids_length, shown_tail(args), thread,
       kNumThreads);
  if (thread == 0) {
    *args.num_tokens_post_pad = total_blocks * args.block_size;
    if (args.num_dropped != nullptr) {
      *args.num_dropped = scan_column(counts, row_length, num_rows, dropped_bucket(args));
    }
  }
}

}  // namespace

const void* align_block_size_one_cta_kernel(IdWidth width, int num_threads, bool is_extended) {
  return choose_instance<256, 512>(
      width, num_threads, is_extended, [](auto id_width, auto threads, auto args) {
        return &one_cta_kernel<id_width(), threads(), typename decltype(args)::type>;
      });
}

}  // namespace tessera::cuda
