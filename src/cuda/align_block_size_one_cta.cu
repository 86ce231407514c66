// One CTA: every warp ranks its ids, the CTA lays the groups out, every thread places its ids.
#include "cuda/align_block_size_device.cuh"

namespace tessera::cuda {
namespace {

constexpr int kMaxRounds = kOneCtaMaxIdsPerThread;

template <IdWidth kWidth, int kNumThreads>
__global__ void __launch_bounds__(kNumThreads)
    one_cta_kernel(const __grid_constant__ AlignBlockSizeKernelArgs args) {
  constexpr int kNumWarps = kNumThreads / 32;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ std::int32_t warp_sums[kStaticSharedBytes / sizeof(std::int32_t)];
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int num_experts = args.num_experts;
  const int row_length = counters_per_row(num_experts);
  const int rounds = args.ids_per_thread;
  const int num_rows = (args.num_ids + 32 * rounds - 1) / (32 * rounds);
  auto* const counts = reinterpret_cast<std::uint16_t*>(shared);
  auto* const masks = reinterpret_cast<std::uint32_t*>(counts + kNumWarps * row_length);
  auto* const starts = reinterpret_cast<std::int32_t*>(masks + kNumWarps * row_length);

  let_successor_start();
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
    buckets[round] =
        first + round * 32 < args.num_ids ? bucket_of(args, ids[round]) : unplaced_bucket(args);
    ranks[round] =
        rank_in_warp(counts + warp * row_length, masks + warp * row_length, buckets[round], lane);
  }
  __syncthreads();

  std::int32_t total_blocks = 0;
  for (int base = 0; base < num_experts; base += kNumThreads) {
    const int expert = base + thread;
    const bool exists = expert < num_experts;
    const std::uint32_t count = exists ? scan_column(counts, row_length, num_rows, expert) : 0;
    const std::int32_t num_blocks = blocks_of(args, count);
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        total_blocks + exclusive_sum<kNumWarps>(num_blocks, warp_sums, lane, warp, &chunk_blocks);
    if (exists) {
      starts[expert] = first_block * args.block_size;
      if (args.expert_counts != nullptr) args.expert_counts[expert] = count;
      const std::int32_t shown = num_blocks != 0 ? shown_expert(args, expert) : 0;
      for (int k = 0; k < num_blocks; ++k) args.expert_ids[first_block + k] = shown;
    }
    total_blocks += chunk_blocks;
    __syncthreads();
  }

#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    if (round >= rounds || warp >= num_rows) break;
    const std::uint32_t bucket = buckets[round];
    if (bucket < args.num_experts) {
      args.sorted_token_ids[starts[bucket] + counts[warp * row_length + bucket] + ranks[round]] =
          first + round * 32;
    }
  }
  fill(args.expert_ids, total_blocks, args.expert_ids_length, args.tail_expert, thread,
       kNumThreads);
  if (thread == 0) {
    *args.num_tokens_post_pad = total_blocks * args.block_size;
    if (args.num_dropped != nullptr) {
      *args.num_dropped = scan_column(counts, row_length, num_rows, dropped_bucket(args));
    }
  }
}

}  // namespace

const void* align_block_size_one_cta_kernel(IdWidth width, int num_threads) {
  return choose_instance<256, 512>(width, num_threads, [](auto id_width, auto threads) {
    return &one_cta_kernel<id_width(), threads()>;
  });
}

}  // namespace tessera::cuda
