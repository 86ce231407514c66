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

/// One CTA that places ids. `place` calls its steps in the order in which they stand here.
template <IdWidth kWidth, int kNumThreads, typename Args>
class RedundantCta {
 public:
  static constexpr int kNumWarps = kNumThreads / 32;

  __device__ __forceinline__ RedundantCta(const Args& args, int num_ctas, unsigned char* shared,
                                          ScanStorage& scan_storage)
      : args_(args),
        scan_storage_(scan_storage),
        num_ctas_(num_ctas),
        cta_first_(cta_ * args.base.ids_per_cta),
        ids_(cta_first_, max(0, min(args.base.ids_per_cta, args.base.num_ids - cta_first_)), 1),
        num_groups_(num_groups_of(args)),
        row_length_(counters_per_row(num_groups_)),
        num_rows_(args.base.ids_per_cta / 32) {
    const RedundantLayout layout(num_groups_, args.base.ids_per_cta);
    both_counts_ = carve(shared, layout.both_counts);
    starts_ = carve(shared, layout.starts);
    first_blocks_ = carve(shared, layout.first_blocks);
    masks_ = carve(shared, layout.masks);
    counts_ = carve(shared, layout.counts);
  }

  __device__ __forceinline__ void clear() {
    clear_shared(both_counts_, row_length_ * 4, thread_, kNumThreads);
    clear_shared(masks_, num_rows_ * row_length_ * 4, thread_, kNumThreads);
    clear_shared(counts_, num_rows_ * row_length_ * 2, thread_, kNumThreads);
    __syncthreads();
  }

  /// Counts all ids in the lower halves of `both_counts`, and the ids before this CTA's in the
  /// upper halves, and ranks this CTA's ids.
  __device__ __forceinline__ void count_and_rank_ids() {
    ids_.load(args_.base);
    prefetch_map(args_.base, thread_, kNumThreads);
    clear_slots_of_ids(args_, ids_, thread_, kNumThreads);
#pragma unroll 8
    for (std::int32_t i = thread_; i < args_.base.num_ids; i += kNumThreads) {
      const std::uint32_t bucket = bucket_of<kWidth>(args_, load_id<kWidth>(args_.base, i));
      atomicAdd(&both_counts_[bucket], i < cta_first_ ? 0x10001u : 1u);
    }
    ids_.rank(args_, counts_, masks_, row_length_);
    __syncthreads();
  }

  /// Gives the groups their blocks, and this CTA its place in each group.
  __device__ __forceinline__ void lay_out_groups() {
    total_blocks_ = scan_groups<kNumWarps>(
        args_.base, 0, num_groups_, kNumThreads, scan_storage_,
        [&](int group, bool exists) -> GroupCounts {
          const std::uint32_t both = exists ? both_counts_[group] : 0;
          return {both & 0xffff, both >> 16};
        },
        [&](int group, const GroupCounts& all, std::int32_t first_block) {
          starts_[group] = first_block * args_.base.block_size + all.before;
          first_blocks_[group] = first_block;
          scan_column(counts_, row_length_, num_rows_, group);
          if (cta_ == 0) store_count(args_, group, all.count);
        });
  }

  /// Writes this CTA's ids, and its share of everything else.
  __device__ __forceinline__ void write_outputs() {
    ids_.for_each_in_group(num_groups_, [&](std::uint32_t bucket, std::uint32_t rank, int i) {
      place_counted(args_, starts_[bucket] + counts_[warp_ * row_length_ + bucket] + rank,
                    cta_first_ + i);
    });
    for (int group = cta_ + num_ctas_ * warp_; group < num_groups_;
         group += num_ctas_ * kNumWarps) {
      finish_group(args_, group, first_blocks_[group], both_counts_[group] & 0xffff, true, lane_);
    }
    const int grid_thread = cta_ * kNumThreads + thread_;
    const int grid_threads = num_ctas_ * kNumThreads;
    fill(args_.base.sorted_token_ids, std::int64_t{total_blocks_} * args_.base.block_size,
         args_.base.sorted_token_ids_length, args_.base.num_ids, grid_thread, grid_threads);
    fill(args_.base.expert_ids, total_blocks_, args_.base.expert_ids_length, shown_tail(args_),
         grid_thread, grid_threads);
    if (cta_ != 0 || thread_ != 0) return;
    *args_.base.num_tokens_post_pad = total_blocks_ * args_.base.block_size;
    if (args_.base.num_dropped != nullptr) {
      *args_.base.num_dropped = both_counts_[dropped_bucket(args_)] & 0xffff;
    }
  }

 private:
  const Args args_;  // a copy: stores might alias arguments behind a reference
  ScanStorage& scan_storage_;
  const int thread_ = threadIdx.x;
  const int lane_ = thread_ % 32;
  const int warp_ = thread_ / 32;
  const int cta_ = blockIdx.x;
  const int num_ctas_;  // without the reporter
  const std::int32_t cta_first_;
  RankedIds<kWidth, 1> ids_;
  const int num_groups_;
  const int row_length_;
  const int num_rows_;
  std::int32_t total_blocks_ = 0;
  // In shared memory: see RedundantLayout.
  std::uint32_t* both_counts_;
  std::int32_t* starts_;
  std::int32_t* first_blocks_;
  std::uint32_t* masks_;
  std::uint16_t* counts_;
};

template <IdWidth kWidth, int kNumThreads, typename Args>
__device__ __forceinline__ void place(const Args& args, int num_ctas, unsigned char* shared,
                                      ScanStorage& scan_storage) {
  RedundantCta<kWidth, kNumThreads, Args> cta(args, num_ctas, shared, scan_storage);
  pdl_launch_dependents();
  cta.clear();
  pdl_wait();
  cta.count_and_rank_ids();
  cta.lay_out_groups();
  cta.write_outputs();
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
