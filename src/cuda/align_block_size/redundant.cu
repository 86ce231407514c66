// Several CTAs that do not wait for each other. Each counts all ids and those before its own, and
// then places its own: to count ids several times takes less time than a barrier would. If the call
// requests reports, one more CTA reports.
#include "cuda/align_block_size/groups.cuh"
#include "cuda/align_block_size/instances.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/align_block_size/ranked_ids.cuh"
#include "cuda/align_block_size/reports.cuh"
#include "cuda/parts/carve.cuh"

namespace tessera::cuda {
namespace {

static_assert(sizeof(ScanStorage) + sizeof(ReportStorage) <= kStaticSharedBytes);

/// Counts all ids in the lower halves of `both_counts`, and the ids before `cta_first` in the upper
/// halves.
template <IdWidth kWidth, int kNumThreads, typename Args>
__device__ __forceinline__ void count_all_ids(const Args& args, std::int32_t cta_first,
                                              std::uint32_t* both_counts) {
#pragma unroll 8
  for (std::int32_t i = threadIdx.x; i < args.base.num_ids; i += kNumThreads) {
    const std::uint32_t bucket = bucket_of<kWidth>(args, load_id<kWidth>(args.base, i));
    atomicAdd(&both_counts[bucket], i < cta_first ? 0x10001u : 1u);
  }
}

/// The work of a CTA that places ids.
template <IdWidth kWidth, int kNumThreads, typename Args>
__device__ __forceinline__ void place(const Args& args, int num_ctas, unsigned char* shared,
                                      ScanStorage& scan_storage) {
  constexpr int kNumWarps = kNumThreads / 32;
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int cta = blockIdx.x;
  const int num_groups = num_groups_of(args);
  const int row_length = counters_per_row(num_groups);
  const int num_rows = args.base.ids_per_cta / 32;
  const RedundantLayout layout(num_groups, args.base.ids_per_cta);
  std::uint32_t* const both_counts = carve(shared, layout.both_counts);
  std::int32_t* const starts = carve(shared, layout.starts);
  std::int32_t* const first_blocks = carve(shared, layout.first_blocks);
  std::uint32_t* const masks = carve(shared, layout.masks);
  std::uint16_t* const counts = carve(shared, layout.counts);

  pdl_launch_dependents();
  clear_shared(both_counts, row_length * 4, thread, kNumThreads);
  clear_shared(masks, num_rows * row_length * 4, thread, kNumThreads);
  clear_shared(counts, num_rows * row_length * 2, thread, kNumThreads);
  __syncthreads();
  pdl_wait();

  const std::int32_t cta_first = cta * args.base.ids_per_cta;
  const int num_own = max(0, min(args.base.ids_per_cta, args.base.num_ids - cta_first));
  RankedIds<kWidth, 1> ids(cta_first, num_own, 1);
  ids.load(args.base);
  prefetch_map(args.base, thread, kNumThreads);
  count_all_ids<kWidth, kNumThreads>(args, cta_first, both_counts);
  ids.rank(args, counts, masks, row_length);
  __syncthreads();

  const std::int32_t total_blocks = scan_groups<kNumWarps>(
      args.base, 0, num_groups, kNumThreads, scan_storage,
      [&](int group, bool exists) -> GroupCounts {
        const std::uint32_t both = exists ? both_counts[group] : 0;
        return {both & 0xffff, both >> 16};
      },
      [&](int group, const GroupCounts& own, std::int32_t first_block) {
        starts[group] = first_block * args.base.block_size + own.before;
        first_blocks[group] = first_block;
        scan_column(counts, row_length, num_rows, group);
        if (cta == 0) store_count(args, group, own.count);
      });

  ids.for_each_in_group(num_groups, [&](std::uint32_t bucket, std::uint32_t rank, int i) {
    place_counted(args.base, starts[bucket] + counts[warp * row_length + bucket] + rank,
                  cta_first + i);
  });
  for (int group = cta + num_ctas * warp; group < num_groups; group += num_ctas * kNumWarps) {
    finish_group(args, group, first_blocks[group], both_counts[group] & 0xffff, true, lane);
  }
  const int grid_thread = cta * kNumThreads + thread;
  const int grid_threads = num_ctas * kNumThreads;
  fill(args.base.sorted_token_ids, std::int64_t{total_blocks} * args.base.block_size,
       args.base.sorted_token_ids_length, args.base.num_ids, grid_thread, grid_threads);
  fill(args.base.expert_ids, total_blocks, args.base.expert_ids_length, shown_tail(args),
       grid_thread, grid_threads);
  if (cta == 0 && thread == 0) {
    *args.base.num_tokens_post_pad = total_blocks * args.base.block_size;
    if (args.base.num_dropped != nullptr) {
      *args.base.num_dropped = both_counts[dropped_bucket(args)] & 0xffff;
    }
  }
}

template <IdWidth kWidth, int kNumThreads, typename Args>
__global__ void __launch_bounds__(kNumThreads) redundant_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ ReportStorage report_storage;
  const int num_ctas = gridDim.x - (has_reporter(args) ? 1 : 0);
  if (has_reporter(args) && static_cast<int>(blockIdx.x) == num_ctas) {
    pdl_launch_dependents();
    report<kWidth, kNumThreads>(args, reinterpret_cast<std::uint32_t*>(shared), report_storage);
  } else if (writes_plainly(args)) {
    place<kWidth, kNumThreads>(AlignBlockSizePlainArgs{args.base}, num_ctas, shared, scan_storage);
  } else {
    place<kWidth, kNumThreads>(args, num_ctas, shared, scan_storage);
  }
}

template <int kNumThreads>
constexpr InstanceRow kRow{
    kNumThreads,
    {redundant_kernel<IdWidth::kNarrow, kNumThreads, AlignBlockSizePlainArgs>,
     redundant_kernel<IdWidth::k32, kNumThreads, AlignBlockSizePlainArgs>,
     redundant_kernel<IdWidth::k64, kNumThreads, AlignBlockSizePlainArgs>},
    {redundant_kernel<IdWidth::kNarrow, kNumThreads, AlignBlockSizeExtendedArgs>,
     redundant_kernel<IdWidth::k32, kNumThreads, AlignBlockSizeExtendedArgs>,
     redundant_kernel<IdWidth::k64, kNumThreads, AlignBlockSizeExtendedArgs>}};

}  // namespace

const void* align_block_size_redundant_kernel(const Instance& instance) {
  static constexpr InstanceRow kRows[] = {kRow<256>, kRow<512>};
  return find_instance(kRows, instance);
}

}  // namespace tessera::cuda
