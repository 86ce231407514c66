// Any number of ids and experts: the counts of each CTA lie in the workspace, and every id is read
// twice, to be counted and to be placed, a tile at a time.
#include <cooperative_groups.h>

#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_scan.cuh>

#include "cuda/align_block_size/reports.cuh"

namespace tessera::cuda {
namespace {

constexpr int kNumThreads = 256;
constexpr int kNumWarps = kNumThreads / 32;
constexpr int kItems = kWideIdsPerThread;
constexpr int kTile = kNumThreads * kItems;

using TileSort = cub::BlockRadixSort<std::uint32_t, kNumThreads, kItems, std::uint32_t>;
using RunScan = cub::BlockScan<int, kNumThreads>;

/// What a CTA tells the others, in the workspace.
struct CtaWords {
  std::uint32_t blocks;
  std::uint32_t dropped;
  std::uint32_t assigned_pairs;
  std::uint32_t active_experts;
  std::uint32_t max_load;
  std::uint32_t filtered_pairs;
  std::uint32_t invalid_entries;
  std::uint32_t first_invalid_entry;
};
static_assert(sizeof(CtaWords) == kWideWordsPerCta * sizeof(std::uint32_t));

struct LastStart {
  __device__ int operator()(int a, int b) const { return max(a, b); }
};

template <IdWidth kWidth, typename Args>
__global__ void __launch_bounds__(kNumThreads) wide_kernel(const __grid_constant__ Args args) {
  __shared__ union {
    typename TileSort::TempStorage sort;
    typename RunScan::TempStorage scan;
    std::uint32_t buckets[kTile + 1];
    std::int32_t warp_sums[32];
  } shared;
  __shared__ Loads loads;
  __shared__ std::uint32_t num_invalid_entries;
  __shared__ std::uint32_t first_invalid_entry;
  const auto grid = cooperative_groups::this_grid();
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int cta = blockIdx.x;
  const int num_ctas = gridDim.x;
  const std::int64_t grid_thread = std::int64_t{cta} * kNumThreads + thread;
  const std::int64_t grid_threads = std::int64_t{num_ctas} * kNumThreads;
  const std::int64_t num_groups = num_groups_of(args);
  const std::int64_t cta_first = std::int64_t{cta} * args.ids_per_cta;
  const std::int64_t cta_end = min(std::int64_t{args.num_ids}, cta_first + args.ids_per_cta);
  // Groups that this CTA lays out.
  const std::int64_t groups_per_cta = (num_groups + num_ctas - 1) / num_ctas;
  const std::int64_t first_group = min(num_groups, cta * groups_per_cta);
  const std::int64_t end_group = min(num_groups, first_group + groups_per_cta);

  auto* const rows = static_cast<std::uint32_t*>(args.workspace);
  std::uint32_t* const own_row = rows + cta * num_groups;
  std::uint32_t* const totals = rows + num_ctas * num_groups;
  std::uint32_t* const first_blocks = totals + num_groups;
  auto* const words = reinterpret_cast<CtaWords*>(first_blocks + num_groups);

  fetch_args(args);
  if (thread == 0) {
    loads = {};
    num_invalid_entries = 0;
    first_invalid_entry = ~0u;
  }
  wait_for_predecessor();
  std::uint32_t* const counters = num_groups <= kTile ? shared.buckets : own_row;
  for (std::int64_t group = thread; group < num_groups; group += kNumThreads) counters[group] = 0;
  __syncthreads();
  int num_dropped = 0;
#pragma unroll 4
  for (std::int64_t i = cta_first + thread; i < cta_end; i += kNumThreads) {
    const std::uint32_t bucket = bucket_of<kWidth>(args, load_id<kWidth>(args, i));
    if (bucket < num_groups_of(args)) atomicAdd(&counters[bucket], 1u);
    num_dropped += bucket == dropped_bucket(args);
  }
  __syncthreads();
  if (counters != own_row) {
    for (std::int64_t group = thread; group < num_groups; group += kNumThreads) {
      own_row[group] = counters[group];
    }
    __syncthreads();
  }
  std::int32_t dropped_here;
  exclusive_sum<kNumWarps>(num_dropped, shared.warp_sums, lane, warp, &dropped_here);
  if (thread == 0) words[cta].dropped = dropped_here;
  grid.sync();

  // Of this CTA's groups: what comes before each CTA's ids in the group, and the group's size.
  std::int32_t own_blocks = 0;
  for (std::int64_t base = first_group; base < end_group; base += kNumThreads) {
    const std::int64_t group = base + thread;
    const bool exists = group < end_group;
    std::uint32_t count = 0;
    if (exists) {
#pragma unroll 8
      for (int other = 0; other < num_ctas; ++other) {
        std::uint32_t& before = rows[other * num_groups + group];
        const std::uint32_t of_other = __ldcg(&before);
        before = count;
        count += of_other;
      }
      totals[group] = count;
      store_count(args, group, count);
    }
    if (args.statistics != nullptr) add_loads(args, &loads, group, count, lane);
    if (args.validation != nullptr && args.expert_map != nullptr && exists &&
        group >= args.first_expert && is_invalid_entry(args, group - args.first_expert)) {
      atomicAdd(&num_invalid_entries, 1u);
      atomicMin(&first_invalid_entry, static_cast<std::uint32_t>(group) - args.first_expert);
    }
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        own_blocks + exclusive_sum<kNumWarps>(blocks_of(args, count), shared.warp_sums, lane, warp,
                                              &chunk_blocks);
    if (exists) first_blocks[group] = first_block;
    own_blocks += chunk_blocks;
    __syncthreads();
  }
  if (warp == 0) {
    if (lane == 0) {
      words[cta] = {static_cast<std::uint32_t>(own_blocks),
                    words[cta].dropped,
                    loads.assigned_pairs,
                    loads.active_experts,
                    loads.max_load,
                    loads.filtered_pairs,
                    num_invalid_entries,
                    first_invalid_entry};
    }
  }
  grid.sync();

  // The same from the first group on, and the padding of these groups.
  std::int32_t blocks_before = 0;
  std::int32_t total_blocks = 0;
  for (int other = lane; other < num_ctas; other += 32) {
    const std::int32_t blocks = __ldcg(&words[other].blocks);
    total_blocks += blocks;
    if (other < cta) blocks_before += blocks;
  }
  blocks_before = __reduce_add_sync(kAllLanes, blocks_before);
  total_blocks = __reduce_add_sync(kAllLanes, total_blocks);
  for (std::int64_t group = first_group + thread; group < end_group; group += kNumThreads) {
    first_blocks[group] += blocks_before;
  }
  __syncthreads();
  for (std::int64_t group = first_group + warp; group < end_group; group += kNumWarps) {
    finish_group(args, group, first_blocks[group], totals[group], true, lane);
  }
  fill(args.sorted_token_ids, std::int64_t{total_blocks} * args.block_size,
       args.sorted_token_ids_length, args.num_ids, grid_thread, grid_threads);
  fill(args.expert_ids, total_blocks, args.expert_ids_length, shown_tail(args), grid_thread,
       grid_threads);
  grid.sync();
  let_successor_start();

  // A stable sort brings the ids of a tile that share a bucket together, in their order: a run. Its
  // first position gives each its rank; its last one moves the group's cursor on.
  const int num_bits = 32 - __clz(unplaced_bucket(args));
  for (std::int64_t tile = cta_first; tile < cta_end; tile += kTile) {
    std::uint32_t buckets[kItems];
    std::uint32_t offsets[kItems];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      offsets[k] = thread * kItems + k;
      const std::int64_t i = tile + offsets[k];
      buckets[k] =
          i < cta_end ? bucket_of<kWidth>(args, load_id<kWidth>(args, i)) : unplaced_bucket(args);
    }
    TileSort(shared.sort).Sort(buckets, offsets, 0, num_bits);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kItems; ++k) shared.buckets[thread * kItems + k] = buckets[k];
    if (thread == 0) shared.buckets[kTile] = ~0u;
    __syncthreads();
    const int first_position = thread * kItems;
    std::uint32_t left = first_position == 0 ? ~0u : shared.buckets[first_position - 1];
    const std::uint32_t right = shared.buckets[first_position + kItems];
    __syncthreads();
    int run_starts[kItems];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      run_starts[k] = buckets[k] != (k == 0 ? left : buckets[k - 1]) ? first_position + k : 0;
    }
    RunScan(shared.scan).InclusiveScan(run_starts, run_starts, LastStart());
    std::uint32_t cursors[kItems];
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      cursors[k] = buckets[k] < num_groups_of(args) ? own_row[buckets[k]] : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (buckets[k] >= num_groups_of(args)) continue;
      const std::uint32_t rank = cursors[k] + (first_position + k - run_starts[k]);
      place_counted(args, __ldcg(&first_blocks[buckets[k]]) * args.block_size + rank,
                    static_cast<std::int32_t>(tile + offsets[k]));
      const std::uint32_t next = k + 1 < kItems ? buckets[k + 1] : right;
      if (next != buckets[k]) own_row[buckets[k]] = rank + 1;
    }
    __syncthreads();
  }

  if (cta != 0 || warp != 0) return;
  CtaWords sum = {};
  sum.first_invalid_entry = ~0u;
  std::uint32_t first_with_dropped = num_ctas;
  for (int other = lane; other < num_ctas; other += 32) {
    const CtaWords& of_other = words[other];
    const std::uint32_t dropped = __ldcg(&of_other.dropped);
    if (dropped != 0) first_with_dropped = min(first_with_dropped, other);
    sum.dropped += dropped;
    sum.assigned_pairs += __ldcg(&of_other.assigned_pairs);
    sum.active_experts += __ldcg(&of_other.active_experts);
    sum.max_load = max(sum.max_load, __ldcg(&of_other.max_load));
    sum.filtered_pairs += __ldcg(&of_other.filtered_pairs);
    sum.invalid_entries += __ldcg(&of_other.invalid_entries);
    sum.first_invalid_entry = min(sum.first_invalid_entry, __ldcg(&of_other.first_invalid_entry));
  }
  const std::uint32_t all_dropped = __reduce_add_sync(kAllLanes, sum.dropped);
  if (lane == 0) {
    *args.num_tokens_post_pad = total_blocks * args.block_size;
    if (args.num_dropped != nullptr) *args.num_dropped = all_dropped;
  }
  if (args.statistics != nullptr) {
    const Loads all_loads = {__reduce_add_sync(kAllLanes, sum.assigned_pairs),
                             __reduce_add_sync(kAllLanes, sum.active_experts),
                             __reduce_max_sync(kAllLanes, sum.max_load),
                             __reduce_add_sync(kAllLanes, sum.filtered_pairs)};
    if (lane == 0) write_statistics(args, all_loads, total_blocks);
  }
  if (args.validation != nullptr) {
    const std::int64_t first_cta = __reduce_min_sync(kAllLanes, first_with_dropped);
    Findings found = {all_dropped, 0, __reduce_add_sync(kAllLanes, sum.invalid_entries),
                      __reduce_min_sync(kAllLanes, sum.first_invalid_entry)};
    if (all_dropped != 0) {
      found.first_id = first_invalid_id<kWidth>(args, first_cta * args.ids_per_cta, lane);
    }
    if (lane == 0) write_validation<kWidth>(args, found);
  }
}

}  // namespace

const void* align_block_size_wide_kernel(IdWidth width, int num_threads, bool is_extended) {
  return choose_instance<kNumThreads>(
      width, num_threads, is_extended, [](auto id_width, auto, auto args) {
        return &wide_kernel<id_width(), typename decltype(args)::type>;
      });
}

}  // namespace tessera::cuda
