// Any number of ids and experts: the counts of each CTA lie in the workspace, and every id is read
// twice, to be counted and to be placed, a tile at a time.
#include <cooperative_groups.h>

#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_scan.cuh>

#include "cuda/align_block_size_device.cuh"

namespace tessera::cuda {
namespace {

constexpr int kNumThreads = 256;
constexpr int kNumWarps = kNumThreads / 32;
constexpr int kItems = kWideIdsPerThread;
constexpr int kTile = kNumThreads * kItems;

using TileSort = cub::BlockRadixSort<std::uint32_t, kNumThreads, kItems, std::uint32_t>;
using RunScan = cub::BlockScan<int, kNumThreads>;

struct LastStart {
  __device__ int operator()(int a, int b) const { return max(a, b); }
};

template <IdWidth kWidth>
__global__ void __launch_bounds__(kNumThreads)
    wide_kernel(const __grid_constant__ AlignBlockSizeKernelArgs args) {
  __shared__ union {
    typename TileSort::TempStorage sort;
    typename RunScan::TempStorage scan;
    std::uint32_t buckets[kTile + 1];
    std::int32_t warp_sums[32];
  } shared;
  const auto grid = cooperative_groups::this_grid();
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int cta = blockIdx.x;
  const int num_ctas = gridDim.x;
  const std::int64_t grid_thread = std::int64_t{cta} * kNumThreads + thread;
  const std::int64_t grid_threads = std::int64_t{num_ctas} * kNumThreads;
  const std::int64_t num_experts = args.num_experts;
  const std::int64_t cta_first = std::int64_t{cta} * args.ids_per_cta;
  const std::int64_t cta_end = min(std::int64_t{args.num_ids}, cta_first + args.ids_per_cta);
  // Experts that this CTA lays out.
  const std::int64_t experts_per_cta = (num_experts + num_ctas - 1) / num_ctas;
  const std::int64_t first_expert = min(num_experts, cta * experts_per_cta);
  const std::int64_t end_expert = min(num_experts, first_expert + experts_per_cta);

  auto* const rows = static_cast<std::uint32_t*>(args.workspace);
  std::uint32_t* const own_row = rows + cta * num_experts;
  std::uint32_t* const totals = rows + num_ctas * num_experts;
  std::uint32_t* const first_blocks = totals + num_experts;
  std::uint32_t* const cta_blocks = first_blocks + num_experts;
  std::uint32_t* const cta_dropped = cta_blocks + num_ctas;

  wait_for_predecessor();
  std::uint32_t* const counters = num_experts <= kTile ? shared.buckets : own_row;
  for (std::int64_t expert = thread; expert < num_experts; expert += kNumThreads) {
    counters[expert] = 0;
  }
  __syncthreads();
  int num_dropped = 0;
#pragma unroll 4
  for (std::int64_t i = cta_first + thread; i < cta_end; i += kNumThreads) {
    const std::uint32_t bucket = bucket_of(args, load_id<kWidth>(args, i));
    if (bucket < args.num_experts) atomicAdd(&counters[bucket], 1u);
    num_dropped += bucket == dropped_bucket(args);
  }
  __syncthreads();
  if (counters != own_row) {
    for (std::int64_t expert = thread; expert < num_experts; expert += kNumThreads) {
      own_row[expert] = counters[expert];
    }
    __syncthreads();
  }
  std::int32_t dropped_here;
  exclusive_sum<kNumWarps>(num_dropped, shared.warp_sums, lane, warp, &dropped_here);
  if (thread == 0) cta_dropped[cta] = dropped_here;
  grid.sync();

  // Of this CTA's experts: what comes before each CTA's ids in the group, and the group's size.
  std::int32_t own_blocks = 0;
  for (std::int64_t base = first_expert; base < end_expert; base += kNumThreads) {
    const std::int64_t expert = base + thread;
    std::uint32_t count = 0;
    if (expert < end_expert) {
#pragma unroll 8
      for (int other = 0; other < num_ctas; ++other) {
        std::uint32_t& before = rows[other * num_experts + expert];
        const std::uint32_t of_other = __ldcg(&before);
        before = count;
        count += of_other;
      }
      totals[expert] = count;
      if (args.expert_counts != nullptr) args.expert_counts[expert] = count;
    }
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        own_blocks + exclusive_sum<kNumWarps>(blocks_of(args, count), shared.warp_sums, lane, warp,
                                              &chunk_blocks);
    if (expert < end_expert) first_blocks[expert] = first_block;
    own_blocks += chunk_blocks;
    __syncthreads();
  }
  if (thread == 0) cta_blocks[cta] = own_blocks;
  grid.sync();

  // The same from the first expert on, and the padding of these groups.
  std::int32_t blocks_before = 0;
  std::int32_t total_blocks = 0;
  for (int other = lane; other < num_ctas; other += 32) {
    const std::int32_t blocks = __ldcg(&cta_blocks[other]);
    total_blocks += blocks;
    if (other < cta) blocks_before += blocks;
  }
  blocks_before = __reduce_add_sync(kAllLanes, blocks_before);
  total_blocks = __reduce_add_sync(kAllLanes, total_blocks);
  for (std::int64_t expert = first_expert + thread; expert < end_expert; expert += kNumThreads) {
    first_blocks[expert] += blocks_before;
  }
  __syncthreads();
  for (std::int64_t expert = first_expert + warp; expert < end_expert; expert += kNumWarps) {
    finish_group(args, expert, first_blocks[expert], totals[expert], true, lane);
  }
  fill(args.sorted_token_ids, std::int64_t{total_blocks} * args.block_size,
       args.sorted_token_ids_length, args.num_ids, grid_thread, grid_threads);
  fill(args.expert_ids, total_blocks, args.expert_ids_length, args.tail_expert, grid_thread,
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
      buckets[k] = i < cta_end ? bucket_of(args, load_id<kWidth>(args, i)) : unplaced_bucket(args);
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
      cursors[k] = buckets[k] < args.num_experts ? own_row[buckets[k]] : 0;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if (buckets[k] >= args.num_experts) continue;
      const std::uint32_t rank = cursors[k] + (first_position + k - run_starts[k]);
      args.sorted_token_ids[__ldcg(&first_blocks[buckets[k]]) * args.block_size + rank] =
          static_cast<std::int32_t>(tile + offsets[k]);
      const std::uint32_t next = k + 1 < kItems ? buckets[k + 1] : right;
      if (next != buckets[k]) own_row[buckets[k]] = rank + 1;
    }
    __syncthreads();
  }

  if (cta == 0 && warp == 0) {
    std::uint32_t sum = 0;
    for (int other = lane; other < num_ctas; other += 32) sum += __ldcg(&cta_dropped[other]);
    sum = __reduce_add_sync(kAllLanes, sum);
    if (lane == 0) {
      *args.num_tokens_post_pad = total_blocks * args.block_size;
      if (args.num_dropped != nullptr) *args.num_dropped = sum;
    }
  }
}

}  // namespace

const void* align_block_size_wide_kernel(IdWidth width, int num_threads) {
  return choose_instance<kNumThreads>(width, num_threads,
                                      [](auto id_width, auto) { return &wide_kernel<id_width()>; });
}

}  // namespace tessera::cuda
