// One CTA: every warp ranks its ids, the CTA lays out the groups, and every thread places its ids.
// If the call requests reports, a second CTA reports.
#include "cuda/align_block_size/groups.cuh"
#include "cuda/align_block_size/instances.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/align_block_size/ranked_ids.cuh"
#include "cuda/align_block_size/reports.cuh"
#include "cuda/parts/carve.cuh"

namespace tessera::cuda {
namespace {

static_assert(sizeof(ScanStorage) + sizeof(ReportStorage) <= kStaticSharedBytes);

template <IdWidth kWidth, int kNumThreads, typename Args>
__global__ void __launch_bounds__(kNumThreads) one_cta_kernel(const __grid_constant__ Args args) {
  constexpr int kNumWarps = kNumThreads / 32;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ ReportStorage report_storage;
  const int thread = threadIdx.x;
  const int warp = thread / 32;
  const int num_groups = num_groups_of(args);
  const int row_length = counters_per_row(num_groups);
  const OneCtaLayout layout(num_groups, kNumWarps);
  std::uint16_t* const counts = carve(shared, layout.counts);
  std::uint32_t* const masks = carve(shared, layout.masks);
  std::int32_t* const starts = carve(shared, layout.starts);

  pdl_launch_dependents();
  prefetch_args(args);
  if (has_reporter(args) && blockIdx.x == 1) {
    report<kWidth, kNumThreads>(args, masks, report_storage);
    return;
  }
  RankedIds<kWidth, kOneCtaMaxIdsPerThread> ids(0, args.base.num_ids, args.base.ids_per_thread);
  const int num_rows = ids.num_rows();
  clear_shared(counts, num_rows * row_length * 2, thread, kNumThreads);
  clear_shared(masks, num_rows * row_length * 4, thread, kNumThreads);
  __syncthreads();
  pdl_wait();

  ids.load(args.base);
  prefetch_map(args.base, thread, kNumThreads);
  fill(args.base.sorted_token_ids, 0, args.base.sorted_token_ids_length, args.base.num_ids, thread,
       kNumThreads);
  ids.rank(args, counts, masks, row_length);
  __syncthreads();

  const std::int32_t total_blocks = scan_groups<kNumWarps>(
      args.base, 0, num_groups, kNumThreads, scan_storage,
      [&](int group, bool exists) -> GroupCounts {
        return {exists ? scan_column(counts, row_length, num_rows, group) : 0, 0};
      },
      [&](int group, const GroupCounts& own, std::int32_t first_block) {
        starts[group] = first_block * args.base.block_size;
        store_count(args, group, own.count);
        const std::int32_t num_blocks = blocks_of(args.base, own.count);
        const std::int32_t shown = num_blocks != 0 ? shown_expert(args, group) : 0;
        for (int k = 0; k < num_blocks; ++k) args.base.expert_ids[first_block + k] = shown;
      });

  ids.for_each_in_group(num_groups, [&](std::uint32_t bucket, std::uint32_t rank, int i) {
    args.base.sorted_token_ids[starts[bucket] + counts[warp * row_length + bucket] + rank] = i;
  });
  fill(args.base.expert_ids, total_blocks, args.base.expert_ids_length, shown_tail(args), thread,
       kNumThreads);
  if (thread == 0) {
    *args.base.num_tokens_post_pad = total_blocks * args.base.block_size;
    if (args.base.num_dropped != nullptr) {
      *args.base.num_dropped = scan_column(counts, row_length, num_rows, dropped_bucket(args));
    }
  }
}

template <int kNumThreads>
constexpr InstanceRow kRow{
    kNumThreads,
    {one_cta_kernel<IdWidth::kNarrow, kNumThreads, AlignBlockSizePlainArgs>,
     one_cta_kernel<IdWidth::k32, kNumThreads, AlignBlockSizePlainArgs>,
     one_cta_kernel<IdWidth::k64, kNumThreads, AlignBlockSizePlainArgs>},
    {one_cta_kernel<IdWidth::kNarrow, kNumThreads, AlignBlockSizeExtendedArgs>,
     one_cta_kernel<IdWidth::k32, kNumThreads, AlignBlockSizeExtendedArgs>,
     one_cta_kernel<IdWidth::k64, kNumThreads, AlignBlockSizeExtendedArgs>}};

}  // namespace

const void* align_block_size_one_cta_kernel(const Instance& instance) {
  static constexpr InstanceRow kRows[] = {kRow<256>, kRow<512>};
  return find_instance(kRows, instance);
}

}  // namespace tessera::cuda
