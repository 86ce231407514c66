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

/// Adds up the counts of a group, which every CTA has at `cta_count` in its shared memory. All
/// lanes of a warp call it together; the sum is zero where the group does not exist.
__device__ __forceinline__ GroupCounts sum_over_ctas(std::uint32_t* cta_count, bool exists, int cta,
                                                     int num_ctas) {
  const auto cluster = cooperative_groups::this_cluster();
  GroupCounts sum{};
  std::uint32_t counts[kClusterMaxCtas] = {};
  if (exists) {
#pragma unroll
    for (int other = 0; other < kClusterMaxCtas; ++other) {
      if (other < num_ctas) counts[other] = *cluster.map_shared_rank(cta_count, other);
    }
  }
  // Keeps all loads in flight at once, where the compiler would wait for the first ones to reuse
  // their registers.
  __syncwarp();
#pragma unroll
  for (int other = 0; other < kClusterMaxCtas; ++other) {
    sum.count += counts[other];
    if (other < cta) sum.before += counts[other];
  }
  return sum;
}

/// One CTA that places ids. `place` calls its steps in the order in which they stand here.
template <IdWidth kWidth, typename Args>
class ClusterCta {
 public:
  __device__ __forceinline__ ClusterCta(const Args& args, int num_ctas, unsigned char* shared,
                                        ScanStorage& scan_storage)
      : args_(args),
        scan_storage_(scan_storage),
        num_ctas_(num_ctas),
        cta_first_(cta_ * args.base.ids_per_cta),
        ids_(cta_first_, max(0, min(args.base.ids_per_cta, args.base.num_ids - cta_first_)),
             args.base.ids_per_thread),
        num_groups_(num_groups_of(args)),
        row_length_(counters_per_row(num_groups_)) {
    const ClusterLayout layout(num_groups_, kNumWarps);
    cta_counts_ = carve(shared, layout.cta_counts);
    starts_ = carve(shared, layout.starts);
    first_blocks_ = carve(shared, layout.first_blocks);
    group_sizes_ = carve(shared, layout.group_sizes);
    masks_ = carve(shared, layout.masks);
    counts_ = carve(shared, layout.counts);
  }

  __device__ __forceinline__ void clear() {
    clear_shared(masks_, ids_.num_rows() * row_length_ * 4, thread_, kNumThreads);
    clear_shared(counts_, ids_.num_rows() * row_length_ * 2, thread_, kNumThreads);
    __syncthreads();
  }

  /// Loads the ids and, while they are on their way, does what does not need them.
  __device__ __forceinline__ void load_ids() {
    ids_.load(args_.base);
    prefetch_map(args_.base, thread_, kNumThreads);
    clear_slots_of_ids(args_, ids_, thread_, kNumThreads);
    fill(args_.base.sorted_token_ids, 0, args_.base.sorted_token_ids_length, args_.base.num_ids,
         grid_thread(), grid_threads());
  }

  /// Ranks this CTA's ids, and counts them by group.
  __device__ __forceinline__ void rank_ids() {
    ids_.rank(args_, counts_, masks_, row_length_);
    __syncthreads();
    for (std::uint32_t bucket = thread_; bucket <= dropped_bucket(args_); bucket += kNumThreads) {
      cta_counts_[bucket] = scan_column(counts_, row_length_, ids_.num_rows(), bucket);
    }
  }

  /// Gives the groups their blocks, and this CTA its place in each group.
  __device__ __forceinline__ void lay_out_groups() {
    total_blocks_ = scan_groups<kNumWarps>(
        args_.base, 0, num_groups_, kNumThreads, scan_storage_,
        [&](int group, bool exists) {
          return sum_over_ctas(&cta_counts_[group], exists, cta_, num_ctas_);
        },
        [&](int group, const GroupCounts& all, std::int32_t first_block) {
          starts_[group] = first_block * args_.base.block_size + all.before;
          first_blocks_[group] = first_block;
          group_sizes_[group] = all.count;
          if (cta_ == 0) store_count(args_, group, all.count);
        });
    if (cta_ == 0 && thread_ < num_ctas_) {
      const auto cluster = cooperative_groups::this_cluster();
      num_dropped_ = *cluster.map_shared_rank(&cta_counts_[dropped_bucket(args_)], thread_);
    }
  }

  /// Writes this CTA's ids, and its share of everything else.
  __device__ __forceinline__ void write_outputs() {
    ids_.for_each_in_group(num_groups_, [&](std::uint32_t bucket, std::uint32_t rank, int i) {
      place_id(args_, starts_[bucket] + counts_[warp_ * row_length_ + bucket] + rank,
               cta_first_ + i);
    });
    for (int group = cta_ + num_ctas_ * warp_; group < num_groups_;
         group += num_ctas_ * kNumWarps) {
      finish_group(args_, group, first_blocks_[group], group_sizes_[group], false, lane_);
    }
    fill(args_.base.expert_ids, total_blocks_, args_.base.expert_ids_length, shown_tail(args_),
         grid_thread(), grid_threads());
    if (cta_ != 0 || warp_ != 0) return;
    const std::uint32_t num_dropped = __reduce_add_sync(kAllLanes, num_dropped_);
    if (lane_ == 0) {
      *args_.base.num_tokens_post_pad = total_blocks_ * args_.base.block_size;
      if (args_.base.num_dropped != nullptr) *args_.base.num_dropped = num_dropped;
    }
  }

 private:
  __device__ __forceinline__ int grid_thread() const { return cta_ * kNumThreads + thread_; }
  __device__ __forceinline__ int grid_threads() const { return num_ctas_ * kNumThreads; }

  const Args args_;  // a copy: stores might alias arguments behind a reference
  ScanStorage& scan_storage_;
  const int thread_ = threadIdx.x;
  const int lane_ = thread_ % 32;
  const int warp_ = thread_ / 32;
  const int cta_ = blockIdx.x;
  const int num_ctas_;  // without reporters
  const std::int32_t cta_first_;
  RankedIds<kWidth, kClusterMaxIdsPerThread> ids_;
  const int num_groups_;
  const int row_length_;
  std::int32_t total_blocks_ = 0;
  std::uint32_t num_dropped_ = 0;  // of the CTA with this thread's number
  // In shared memory: see ClusterLayout.
  std::uint32_t* cta_counts_;
  std::int32_t* starts_;
  std::int32_t* first_blocks_;
  std::uint32_t* group_sizes_;
  std::uint32_t* masks_;
  std::uint16_t* counts_;
};

template <IdWidth kWidth, typename Args>
__device__ __forceinline__ void place(const Args& args, int num_ctas, unsigned char* shared,
                                      ScanStorage& scan_storage) {
  const auto cluster = cooperative_groups::this_cluster();
  ClusterCta<kWidth, Args> cta(args, num_ctas, shared, scan_storage);
  pdl_launch_dependents();
  cta.clear();
  pdl_wait();
  cta.load_ids();
  cta.rank_ids();
  cluster.sync();
  cta.lay_out_groups();
  // A CTA's shared memory must outlive the reads by the others.
  auto&& token = cluster.barrier_arrive();
  cta.write_outputs();
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
