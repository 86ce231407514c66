// Several CTAs, none of which waits for another: each counts all ids, all of them and those before
// its own, and then places its own. What counting costs more than once, a barrier would cost too.
#include "cuda/align_block_size/reports.cuh"

namespace tessera::cuda {
namespace {

/// What one of the CTAs does that place ids.
template <IdWidth kWidth, int kNumThreads, typename Args>
__device__ __forceinline__ void place(const Args& args, int num_ctas, unsigned char* shared,
                                      std::int32_t* warp_sums) {
  constexpr int kNumWarps = kNumThreads / 32;
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int cta = blockIdx.x;
  const int num_groups = num_groups_of(args);
  const int row_length = counters_per_row(num_groups);
  const int num_rows = args.ids_per_cta / 32;
  // Of each bucket: all ids in the lower 16 bits, those before this CTA's in the upper 16.
  auto* const packed = reinterpret_cast<std::uint32_t*>(shared);
  auto* const starts = reinterpret_cast<std::int32_t*>(packed + row_length);
  auto* const first_blocks = starts + row_length;
  auto* const masks = reinterpret_cast<std::uint32_t*>(first_blocks + row_length);
  auto* const counts = reinterpret_cast<std::uint16_t*>(masks + num_rows * row_length);

  let_successor_start();
  clear_shared(packed, row_length * 4, thread, kNumThreads);
  clear_shared(masks, num_rows * row_length * 4, thread, kNumThreads);
  clear_shared(counts, num_rows * row_length * 2, thread, kNumThreads);
  __syncthreads();
  wait_for_predecessor();

  const std::int32_t cta_first = cta * args.ids_per_cta;
  const bool has_own = thread < args.ids_per_cta && cta_first + thread < args.num_ids;
  RawId<kWidth> own_id{};
  if (has_own) own_id = load_id<kWidth>(args, cta_first + thread);
  fetch_map(args, thread, kNumThreads);
#pragma unroll 8
  for (std::int32_t i = thread; i < args.num_ids; i += kNumThreads) {
    const std::uint32_t bucket = bucket_of<kWidth>(args, load_id<kWidth>(args, i));
    atomicAdd(&packed[bucket], i < cta_first ? 0x10001u : 1u);
  }
  std::uint32_t own_bucket = unplaced_bucket(args);
  std::uint32_t own_rank = 0;
  if (warp < num_rows) {
    if (has_own) own_bucket = bucket_of<kWidth>(args, own_id);
    own_rank =
        rank_in_warp(counts + warp * row_length, masks + warp * row_length, own_bucket, lane);
  }
  __syncthreads();

  std::int32_t total_blocks = 0;
  for (int base = 0; base < num_groups; base += kNumThreads) {
    const int group = base + thread;
    const bool exists = group < num_groups;
    const std::uint32_t count = exists ? packed[group] & 0xffff : 0;
    const std::uint32_t before = exists ? packed[group] >> 16 : 0;
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        total_blocks +
        exclusive_sum<kNumWarps>(blocks_of(args, count), warp_sums, lane, warp, &chunk_blocks);
    if (exists) {
      starts[group] = first_block * args.block_size + before;
      first_blocks[group] = first_block;
      scan_column(counts, row_length, num_rows, group);
      if (cta == 0) store_count(args, group, count);
    }
    total_blocks += chunk_blocks;
    __syncthreads();
  }

  if (own_bucket < num_groups_of(args)) {
    place_counted(args, starts[own_bucket] + counts[warp * row_length + own_bucket] + own_rank,
                  cta_first + thread);
  }
  for (int group = cta + num_ctas * warp; group < num_groups; group += num_ctas * kNumWarps) {
    finish_group(args, group, first_blocks[group], packed[group] & 0xffff, true, lane);
  }
  const int grid_thread = cta * kNumThreads + thread;
  const int grid_threads = num_ctas * kNumThreads;
  fill(args.sorted_token_ids, std::int64_t{total_blocks} * args.block_size,
       args.sorted_token_ids_length, args.num_ids, grid_thread, grid_threads);
  fill(args.expert_ids, total_blocks, args.expert_ids_length, shown_tail(args), grid_thread,
       grid_threads);
  if (cta == 0 && thread == 0) {
    *args.num_tokens_post_pad = total_blocks * args.block_size;
    if (args.num_dropped != nullptr) *args.num_dropped = packed[dropped_bucket(args)] & 0xffff;
  }
}

template <IdWidth kWidth, int kNumThreads, typename Args>
__global__ void __launch_bounds__(kNumThreads) redundant_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ std::int32_t warp_sums[32];
  const int num_ctas = gridDim.x - (has_reporter(args) ? 1 : 0);
  if (has_reporter(args) && static_cast<int>(blockIdx.x) == num_ctas) {
    let_successor_start();
    report<kWidth, kNumThreads>(args, reinterpret_cast<std::uint32_t*>(shared), threadIdx.x);
  } else if (places_plainly(args)) {
    place<kWidth, kNumThreads>(AlignBlockSizePlainArgs{args}, num_ctas, shared, warp_sums);
  } else {
    place<kWidth, kNumThreads>(args, num_ctas, shared, warp_sums);
  }
}

}  // namespace

const void* align_block_size_redundant_kernel(IdWidth width, int num_threads, bool is_extended) {
  return choose_instance<256, 512>(
      width, num_threads, is_extended, [](auto id_width, auto threads, auto args) {
        return &redundant_kernel<id_width(), threads(), typename decltype(args)::type>;
      });
}

}  // namespace tessera::cuda
