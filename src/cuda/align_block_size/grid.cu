// The whole GPU: every CTA sorts its own ids in shared memory and publishes how many of each group
// it has; after one barrier across the grid it knows where its part of every group goes.
#include <cooperative_groups.h>

#include <utility>

#include "cuda/align_block_size/reports.cuh"

namespace tessera::cuda {
namespace {

/// Adds up the CTAs' rows of counts: `partial` gets a row a warp, the sums over that warp's share
/// of the CTAs; `before` the sums over those CTAs of this CTA's share that come before it. Returns
/// what the warp's share of the CTAs has dropped, for lane 0, or 0 without `dropped`.
template <int kNumWarps>
__device__ __forceinline__ std::uint32_t add_up_rows(const std::uint16_t* rows,
                                                     const std::uint32_t* dropped, int length,
                                                     int row_length, std::int32_t* partial,
                                                     std::int32_t* before, int lane, int warp) {
  const int num_ctas = gridDim.x;
  const int cta = blockIdx.x;
  const int share = (num_ctas + kNumWarps - 1) / kNumWarps;
  const int first = warp * share;
  const int last = min(num_ctas, first + share);
  std::uint32_t num_dropped = 0;
  if (dropped != nullptr) {
    for (int other = first + lane; other < last; other += 32)
      num_dropped += __ldcg(&dropped[other]);
  }
  for (int column = lane * 8; column < length; column += 32 * 8) {
    std::int32_t sum[8] = {};
    std::int32_t sum_before[8] = {};
#pragma unroll 4
    for (int other = first; other < last; ++other) {
      // Written by other CTAs in this launch: not through the read-only path.
      const uint4 words = __ldcg(reinterpret_cast<const uint4*>(rows + other * length + column));
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const std::int32_t count = k % 2 == 0 ? word[k / 2] & 0xffff : word[k / 2] >> 16;
        sum[k] += count;
        if (other < cta) sum_before[k] += count;
      }
    }
    auto* const out = reinterpret_cast<int4*>(partial + warp * row_length + column);
    out[0] = make_int4(sum[0], sum[1], sum[2], sum[3]);
    out[1] = make_int4(sum[4], sum[5], sum[6], sum[7]);
    if (cta / share == warp) {
      auto* const own = reinterpret_cast<int4*>(before + column);
      own[0] = make_int4(sum_before[0], sum_before[1], sum_before[2], sum_before[3]);
      own[1] = make_int4(sum_before[4], sum_before[5], sum_before[6], sum_before[7]);
    }
  }
  return dropped == nullptr ? 0 : __reduce_add_sync(kAllLanes, num_dropped);
}

template <IdWidth kWidth, int kNumThreads, typename Args>
__global__ void __launch_bounds__(kNumThreads) grid_kernel(const __grid_constant__ Args args) {
  constexpr int kNumWarps = kNumThreads / 32;
  constexpr int kMaxRounds = grid_max_ids_per_thread(kNumThreads);
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ std::int32_t warp_sums[32];
  __shared__ std::uint32_t dropped_by_shares[kNumWarps];
  __shared__ Loads loads;
  __shared__ bool has_invalid_entry;
  const auto grid = cooperative_groups::this_grid();
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int num_ctas = gridDim.x;
  const int cta = blockIdx.x;
  const int num_groups = num_groups_of(args);
  const int row_length = counters_per_row(num_groups);
  const int published_length = grid_row_length(num_groups);
  const int rounds = args.ids_per_thread;
  const std::int64_t cta_first = std::int64_t{cta} * args.ids_per_cta;
  const int num_own = static_cast<int>(
      max(std::int64_t{0}, min(std::int64_t{args.ids_per_cta}, args.num_ids - cta_first)));
  const int num_rows = (num_own + 32 * rounds - 1) / (32 * rounds);
  auto* const totals = reinterpret_cast<std::int32_t*>(shared);  // of the groups in this CTA,
  auto* const starts = totals + row_length;                      // and where its part goes
  auto* const local_starts = starts + row_length;                // and lies in `sorted`
  auto* const first_blocks = local_starts + row_length;
  auto* const masks = reinterpret_cast<std::uint32_t*>(first_blocks + row_length);
  auto* const partial = reinterpret_cast<std::int32_t*>(masks);  // after the masks' use
  auto* const sorted = masks + kNumWarps * row_length;           // bucket << 16 | own index
  auto* const counts = reinterpret_cast<std::uint16_t*>(sorted + kNumThreads * rounds);
  auto* const rows = static_cast<std::uint16_t*>(args.workspace);
  auto* const dropped = reinterpret_cast<std::uint32_t*>(rows + num_ctas * published_length);

  fetch_args(args);
  if (has_reporter(args) && thread == 0) {
    loads = {};
    has_invalid_entry = false;
  }
  clear_shared(masks, num_rows * row_length * 4, thread, kNumThreads);
  clear_shared(counts, num_rows * row_length * 2, thread, kNumThreads);
  __syncthreads();
  wait_for_predecessor();

  const int first = warp * 32 * rounds + lane;
  RawId<kWidth> ids[kMaxRounds];
#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    const int i = first + round * 32;
    if (round < rounds && i < num_own) {
      ids[round] = load_id<kWidth>(args, static_cast<std::int32_t>(cta_first) + i);
    }
  }
  fetch_map(args, thread, kNumThreads);
  if (args.validation != nullptr && cta == 0) {
    check_map(args, &has_invalid_entry, thread, kNumThreads);
  }
  const int grid_thread = cta * kNumThreads + thread;
  const int grid_threads = num_ctas * kNumThreads;
  if (args.fills_first) {
    fill(args.sorted_token_ids, 0, args.sorted_token_ids_length, args.num_ids, grid_thread,
         grid_threads);
  }
  std::uint32_t ranked[kMaxRounds];  // bucket << 16 | rank in the warp
#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    if (round >= rounds || warp >= num_rows) break;
    const std::uint32_t bucket =
        first + round * 32 < num_own ? bucket_of<kWidth>(args, ids[round]) : unplaced_bucket(args);
    ranked[round] = bucket << 16 | rank_in_warp(counts + warp * row_length,
                                                masks + warp * row_length, bucket, lane);
  }
  __syncthreads();
  for (int group = thread; group < published_length; group += kNumThreads) {
    std::int32_t total = 0;
    if (group < num_groups) {
#pragma unroll 8
      for (int row = 0; row < num_rows; ++row) total += counts[row * row_length + group];
    }
    totals[group] = total;
    rows[cta * published_length + group] = static_cast<std::uint16_t>(total);
  }
  constexpr bool kIsExtended = std::is_same_v<Args, AlignBlockSizeExtendedArgs>;
  const bool counts_dropped =
      kIsExtended && (args.num_dropped != nullptr || args.validation != nullptr);
  if (warp == kNumWarps - 1 && counts_dropped) {
    const std::uint32_t own_dropped = __reduce_add_sync(
        kAllLanes, lane < num_rows ? counts[lane * row_length + dropped_bucket(args)] : 0u);
    if (lane == 0) dropped[cta] = own_dropped;
  }
  auto token = grid.barrier_arrive();

  // While the others arrive: this CTA's ids, sorted.
  std::int32_t num_sorted = 0;
  for (int base = 0; base < num_groups; base += kNumThreads) {
    const int group = base + thread;
    const bool exists = group < num_groups;
    std::int32_t chunk_total;
    const std::int32_t local_start =
        num_sorted +
        exclusive_sum<kNumWarps>(exists ? totals[group] : 0, warp_sums, lane, warp, &chunk_total);
    if (exists) {
      local_starts[group] = local_start;
      scan_column(counts, row_length, num_rows, group, local_start);
    }
    num_sorted += chunk_total;
    __syncthreads();
  }
#pragma unroll
  for (int round = 0; round < kMaxRounds; ++round) {
    if (round >= rounds || warp >= num_rows) break;
    const std::uint32_t bucket = ranked[round] >> 16;
    if (bucket < num_groups_of(args)) {
      sorted[counts[warp * row_length + bucket] + (ranked[round] & 0xffff)] =
          bucket << 16 | (first + round * 32);
    }
  }

  grid.barrier_wait(std::move(token));
  let_successor_start();
  const std::uint32_t dropped_by_share =
      add_up_rows<kNumWarps>(rows, counts_dropped && cta == 0 ? dropped : nullptr, published_length,
                             row_length, partial, starts, lane, warp);
  if (counts_dropped && cta == 0 && lane == 0) dropped_by_shares[warp] = dropped_by_share;
  __syncthreads();
  std::int32_t total_blocks = 0;
  const int own_share = cta / ((num_ctas + kNumWarps - 1) / kNumWarps);
  for (int base = 0; base < num_groups; base += kNumThreads) {
    const int group = base + thread;
    const bool exists = group < num_groups;
    std::int32_t count = 0;
    std::int32_t before = 0;
    if (exists) {
      before = starts[group];
#pragma unroll
      for (int share = 0; share < kNumWarps; ++share) {
        const std::int32_t sum = partial[share * row_length + group];
        count += sum;
        if (share < own_share) before += sum;
      }
    }
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        total_blocks +
        exclusive_sum<kNumWarps>(blocks_of(args, count), warp_sums, lane, warp, &chunk_blocks);
    if (exists) {
      totals[group] = count;
      first_blocks[group] = first_block;
      starts[group] = first_block * args.block_size + before - local_starts[group];
      if (cta == 0) store_count(args, group, count);
    }
    if (args.statistics != nullptr && cta == 0) {
      add_loads(args, &loads, group, count, lane);
    }
    total_blocks += chunk_blocks;
    __syncthreads();
  }
  if (args.statistics != nullptr && cta == 0 && thread == kNumThreads - 1) {
    write_statistics(args, loads, total_blocks);
  }

#pragma unroll 4
  for (int j = thread; j < num_sorted; j += kNumThreads) {
    const std::uint32_t entry = sorted[j];
    args.sorted_token_ids[starts[entry >> 16] + j] =
        static_cast<std::int32_t>(cta_first) + static_cast<std::int32_t>(entry & 0xffff);
  }
  for (int group = cta * kNumWarps + warp; group < num_groups; group += num_ctas * kNumWarps) {
    finish_group(args, group, first_blocks[group], totals[group], !args.fills_first, lane);
  }
  if (!args.fills_first) {
    fill(args.sorted_token_ids, std::int64_t{total_blocks} * args.block_size,
         args.sorted_token_ids_length, args.num_ids, grid_thread, grid_threads);
  }
  fill(args.expert_ids, total_blocks, args.expert_ids_length, shown_tail(args), grid_thread,
       grid_threads);
  if (cta == 0 && thread == 0) *args.num_tokens_post_pad = total_blocks * args.block_size;
  if (cta == 0 && warp == 0 && counts_dropped) {
    const std::uint32_t num_dropped =
        __reduce_add_sync(kAllLanes, lane < kNumWarps ? dropped_by_shares[lane] : 0u);
    if (args.num_dropped != nullptr && lane == 0) *args.num_dropped = num_dropped;
    if (args.validation != nullptr) {
      std::int64_t first = 0;
      if (num_dropped != 0) {
        while (__ldcg(&dropped[first]) == 0) ++first;
      }
      report_validation<kWidth>(args, num_dropped, first * args.ids_per_cta, has_invalid_entry,
                                lane);
    }
  }
}

}  // namespace

const void* align_block_size_grid_kernel(IdWidth width, int num_threads, bool is_extended) {
  return choose_instance<512, 1024>(
      width, num_threads, is_extended, [](auto id_width, auto threads, auto args) {
        return &grid_kernel<id_width(), threads(), typename decltype(args)::type>;
      });
}

}  // namespace tessera::cuda
