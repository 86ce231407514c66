// One thread block cluster: every CTA counts its own ids, and reads the counts of the others from
// their shared memory. If the call requests reports, a second cluster follows, whose first CTA
// reports.
#include <cooperative_groups.h>

#include <utility>

#include "cuda/align_block_size/groups.cuh"
#include "cuda/align_block_size/instances.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/align_block_size/ranked_ids.cuh"
#include "cuda/align_block_size/reports.cuh"
#include "cuda/parts/carve.cuh"

namespace tessera::cuda {
namespace {

constexpr int kNumThreads = 256;
#if __CUDA_ARCH__ >= 900
constexpr int kNumWarps = kNumThreads / 32;

static_assert(sizeof(ScanStorage) + sizeof(ReportStorage) <= kStaticSharedBytes);

/// Adds up the counts of a group, which every CTA has at `cta_count` in its shared memory.
__device__ __forceinline__ GroupCounts sum_over_ctas(std::uint32_t* cta_count, int cta,
                                                     int num_ctas) {
  const auto cluster = cooperative_groups::this_cluster();
  GroupCounts sum{};
  std::uint32_t counts[kClusterMaxCtas];
#pragma unroll
  for (int other = 0; other < kClusterMaxCtas; ++other) {
    counts[other] = other < num_ctas ? *cluster.map_shared_rank(cta_count, other) : 0;
  }
#pragma unroll
  for (int other = 0; other < kClusterMaxCtas; ++other) {
    sum.count += counts[other];
    if (other < cta) sum.before += counts[other];
  }
  return sum;
}

/// The work of a CTA that places ids.
template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void place(const Args& args, int num_ctas, unsigned char* shared,
                                      ScanStorage& scan_storage) {
  const auto cluster = cooperative_groups::this_cluster();
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int cta = blockIdx.x;
  const int grid_thread = cta * kNumThreads + thread;
  const int grid_threads = num_ctas * kNumThreads;
  const int num_groups = num_groups_of(args);
  const int row_length = counters_per_row(num_groups);
  const ClusterLayout layout(num_groups, kNumWarps);
  std::uint32_t* const cta_counts = carve(shared, layout.cta_counts);
  std::int32_t* const starts = carve(shared, layout.starts);
  std::int32_t* const first_blocks = carve(shared, layout.first_blocks);
  std::uint32_t* const group_sizes = carve(shared, layout.group_sizes);
  std::uint32_t* const masks = carve(shared, layout.masks);
  std::uint16_t* const counts = carve(shared, layout.counts);
  const std::int32_t cta_first = cta * args.base.ids_per_cta;
  const int num_own = max(0, min(args.base.ids_per_cta, args.base.num_ids - cta_first));
  RankedIds<kWidth, kClusterMaxIdsPerThread> ids(cta_first, num_own, args.base.ids_per_thread);
  const int num_rows = ids.num_rows();

  pdl_launch_dependents();
  clear_shared(masks, num_rows * row_length * 4, thread, kNumThreads);
  clear_shared(counts, num_rows * row_length * 2, thread, kNumThreads);
  __syncthreads();
  pdl_wait();

  ids.load(args.base);
  prefetch_map(args.base, thread, kNumThreads);
  fill(args.base.sorted_token_ids, 0, args.base.sorted_token_ids_length, args.base.num_ids,
       grid_thread, grid_threads);
  ids.rank(args, counts, masks, row_length);
  __syncthreads();
  for (std::uint32_t bucket = thread; bucket <= dropped_bucket(args); bucket += kNumThreads) {
    cta_counts[bucket] = scan_column(counts, row_length, num_rows, bucket);
  }
  cluster.sync();

  const std::int32_t total_blocks = scan_groups<kNumWarps>(
      args.base, 0, num_groups, kNumThreads, scan_storage,
      [&](int group, bool exists) {
        return exists ? sum_over_ctas(&cta_counts[group], cta, num_ctas) : GroupCounts{};
      },
      [&](int group, const GroupCounts& all, std::int32_t first_block) {
        starts[group] = first_block * args.base.block_size + all.before;
        first_blocks[group] = first_block;
        group_sizes[group] = all.count;
        if (cta == 0) store_count(args, group, all.count);
      });
  std::uint32_t num_dropped = 0;
  if (cta == 0 && thread < num_ctas) {
    num_dropped = *cluster.map_shared_rank(&cta_counts[dropped_bucket(args)], thread);
  }
  // A CTA's shared memory must outlive the reads by the others.
  auto&& token = cluster.barrier_arrive();

  ids.for_each_in_group(num_groups, [&](std::uint32_t bucket, std::uint32_t rank, int i) {
    args.base.sorted_token_ids[starts[bucket] + counts[warp * row_length + bucket] + rank] =
        cta_first + i;
  });
  for (int group = cta + num_ctas * warp; group < num_groups; group += num_ctas * kNumWarps) {
    finish_group(args, group, first_blocks[group], group_sizes[group], false, lane);
  }
  fill(args.base.expert_ids, total_blocks, args.base.expert_ids_length, shown_tail(args),
       grid_thread, grid_threads);
  if (cta == 0 && warp == 0) {
    num_dropped = __reduce_add_sync(kAllLanes, num_dropped);
    if (lane == 0) {
      *args.base.num_tokens_post_pad = total_blocks * args.base.block_size;
      if (args.base.num_dropped != nullptr) *args.base.num_dropped = num_dropped;
    }
  }
  cluster.barrier_wait(std::move(token));
}
#endif

template <IdWidth kWidth, typename Args>
__global__ void __launch_bounds__(kNumThreads) cluster_kernel(const __grid_constant__ Args args) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ ReportStorage report_storage;
  const int num_ctas = has_reporter(args) ? gridDim.x / 2 : gridDim.x;
  const int cta = blockIdx.x;
  if (has_reporter(args) && cta >= num_ctas) {
    pdl_launch_dependents();
    if (cta > num_ctas) return;
    report<kWidth, kNumThreads>(args, reinterpret_cast<std::uint32_t*>(shared), report_storage);
  } else if (writes_plainly(args)) {
    place<kWidth>(AlignBlockSizePlainArgs{args.base}, num_ctas, shared, scan_storage);
  } else {
    place<kWidth>(args, num_ctas, shared, scan_storage);
  }
#endif
}

}  // namespace

const void* align_block_size_cluster_kernel(const Instance& instance) {
  static constexpr InstanceRow kRows[] = {
      {kNumThreads,
       {cluster_kernel<IdWidth::kNarrow, AlignBlockSizePlainArgs>,
        cluster_kernel<IdWidth::k32, AlignBlockSizePlainArgs>,
        cluster_kernel<IdWidth::k64, AlignBlockSizePlainArgs>},
       {cluster_kernel<IdWidth::kNarrow, AlignBlockSizeExtendedArgs>,
        cluster_kernel<IdWidth::k32, AlignBlockSizeExtendedArgs>,
        cluster_kernel<IdWidth::k64, AlignBlockSizeExtendedArgs>}}};
  return find_instance(kRows, instance);
}

}  // namespace tessera::cuda
