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

/// The CTA that places ids. The kernel calls its steps in the order in which they stand here.
template <IdWidth kWidth, int kNumThreads, typename Args>
class OneCta {
 public:
  static constexpr int kNumWarps = kNumThreads / 32;

  __device__ __forceinline__ OneCta(const Args& args, unsigned char* shared,
                                    ScanStorage& scan_storage)
      : args_(args),
        scan_storage_(scan_storage),
        ids_(0, args.base.num_ids, args.base.ids_per_thread),
        num_groups_(num_groups_of(args)),
        row_length_(counters_per_row(num_groups_)) {
    const OneCtaLayout layout(num_groups_, kNumWarps);
    counts_ = carve(shared, layout.counts);
    masks_ = carve(shared, layout.masks);
    starts_ = carve(shared, layout.starts);
  }

  __device__ __forceinline__ void clear() {
    clear_shared(counts_, ids_.num_rows() * row_length_ * 2, thread_, kNumThreads);
    clear_shared(masks_, ids_.num_rows() * row_length_ * 4, thread_, kNumThreads);
    __syncthreads();
  }

  /// Loads the ids and, while they are on their way, does what does not need them.
  __device__ __forceinline__ void load_ids() {
    ids_.load(args_.base);
    prefetch_map(args_.base, thread_, kNumThreads);
    clear_slots_of_ids(args_, ids_, thread_, kNumThreads);
    fill(args_.base.sorted_token_ids, 0, args_.base.sorted_token_ids_length, args_.base.num_ids,
         thread_, kNumThreads);
  }

  __device__ __forceinline__ void rank_ids() {
    ids_.rank(args_, counts_, masks_, row_length_);
    __syncthreads();
  }

  /// Gives the groups their blocks, and writes the expert of each block.
  __device__ __forceinline__ void lay_out_groups() {
    total_blocks_ = scan_groups<kNumWarps>(
        args_.base, 0, num_groups_, kNumThreads, scan_storage_,
        [&](int group, bool exists) -> GroupCounts {
          return {exists ? scan_column(counts_, row_length_, ids_.num_rows(), group) : 0, 0};
        },
        [&](int group, const GroupCounts& all, std::int32_t first_block) {
          starts_[group] = first_block * args_.base.block_size;
          store_count(args_, group, all.count);
          const std::int32_t num_blocks = blocks_of(args_.base, all.count);
          const std::int32_t shown = num_blocks != 0 ? shown_expert(args_, group) : 0;
          for (int k = 0; k < num_blocks; ++k) args_.base.expert_ids[first_block + k] = shown;
        });
  }

  /// Writes the ids, and what is left of the other outputs.
  __device__ __forceinline__ void write_outputs() {
    ids_.for_each_in_group(num_groups_, [&](std::uint32_t bucket, std::uint32_t rank, int i) {
      place_id(args_, starts_[bucket] + counts_[warp_ * row_length_ + bucket] + rank, i);
    });
    fill(args_.base.expert_ids, total_blocks_, args_.base.expert_ids_length, shown_tail(args_),
         thread_, kNumThreads);
    if (thread_ != 0) return;
    *args_.base.num_tokens_post_pad = total_blocks_ * args_.base.block_size;
    if (args_.base.num_dropped != nullptr) {
      *args_.base.num_dropped =
          scan_column(counts_, row_length_, ids_.num_rows(), dropped_bucket(args_));
    }
  }

 private:
  const Args args_;  // a copy: stores might alias arguments behind a reference
  ScanStorage& scan_storage_;
  const int thread_ = threadIdx.x;
  const int warp_ = thread_ / 32;
  RankedIds<kWidth, kOneCtaMaxIdsPerThread> ids_;
  const int num_groups_;
  const int row_length_;
  std::int32_t total_blocks_ = 0;
  // In shared memory: see OneCtaLayout.
  std::uint16_t* counts_;
  std::uint32_t* masks_;
  std::int32_t* starts_;
};

template <IdWidth kWidth, int kNumThreads, typename Args>
__global__ void __launch_bounds__(kNumThreads) one_cta_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ ReportStorage report_storage;
  pdl_launch_dependents();
  prefetch_args(args);
  if (has_reporter(args) && blockIdx.x == 1) {
    report<kWidth, kNumThreads>(args, reinterpret_cast<std::uint32_t*>(shared), report_storage);
    return;
  }
  OneCta<kWidth, kNumThreads, Args> cta(args, shared, scan_storage);
  cta.clear();
  pdl_wait();
  cta.load_ids();
  cta.rank_ids();
  cta.lay_out_groups();
  cta.write_outputs();
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
