// The whole GPU: every CTA sorts its own ids in shared memory and publishes how many of each group
// it has. After one barrier across the grid it knows where its part of every group goes.
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

/// Static shared memory for what CTA 0 reports. Plain instances do without.
template <int kNumWarps>
struct GridReportStorage {
  std::uint32_t dropped[kNumWarps];  ///< sums over the warps' shares of the CTAs
  Loads loads;
  bool has_invalid_entry;
};
static_assert(sizeof(ScanStorage) + sizeof(GridReportStorage<32>) <= kStaticSharedBytes);

/// One CTA of the grid. The kernel calls its steps in the order in which they stand here.
template <IdWidth kWidth, int kNumThreads, typename Args>
class GridCta {
 public:
  static constexpr int kNumWarps = kNumThreads / 32;
  using ReportStorage = GridReportStorage<kNumWarps>;

  __device__ __forceinline__ GridCta(const Args& args, unsigned char* shared,
                                     ScanStorage& scan_storage, ReportStorage& report_storage)
      : args_(args),
        scan_storage_(scan_storage),
        report_storage_(report_storage),
        ids_(static_cast<std::int32_t>(first_id()), num_ids(), args.base.ids_per_thread),
        num_groups_(num_groups_of(args)),
        row_length_(counters_per_row(num_groups_)) {
    const GridLayout layout(num_groups_, kNumThreads, args.base.ids_per_thread);
    group_sizes_ = carve(shared, layout.group_sizes);
    starts_ = carve(shared, layout.starts);
    sorted_starts_ = carve(shared, layout.sorted_starts);
    first_blocks_ = carve(shared, layout.first_blocks);
    masks_ = carve(shared, layout.masks);
    partial_sums_ = carve(shared, layout.partial_sums);
    sorted_ = carve(shared, layout.sorted);
    counts_ = carve(shared, layout.counts);
    const GridWorkspace workspace(num_groups_, num_ctas_);
    published_length_ = workspace.row_length;
    published_counts_ = carve(args.base.workspace, workspace.counts);
    published_dropped_ = carve(args.base.workspace, workspace.dropped);
  }

  __device__ __forceinline__ void clear() {
    if (has_reporter(args_) && thread_ == 0) {
      report_storage_.loads = {};
      report_storage_.has_invalid_entry = false;
    }
    clear_shared(masks_, ids_.num_rows() * row_length_ * 4, thread_, kNumThreads);
    clear_shared(counts_, ids_.num_rows() * row_length_ * 2, thread_, kNumThreads);
    __syncthreads();
  }

  /// Loads the ids and, while they are on their way, does what does not need them.
  __device__ __forceinline__ void load_ids() {
    ids_.load(args_.base);
    prefetch_map(args_.base, thread_, kNumThreads);
    clear_slots_of_ids(args_, ids_, thread_, kNumThreads);
    if (args_.validation != nullptr && cta_ == 0) {
      flag_invalid_entries(args_.base, &report_storage_.has_invalid_entry, kNumThreads);
    }
    if (args_.base.fills_first) {
      fill(args_.base.sorted_token_ids, 0, args_.base.sorted_token_ids_length, args_.base.num_ids,
           grid_thread_, grid_threads_);
    }
  }

  __device__ __forceinline__ void rank_ids() {
    ids_.rank(args_, counts_, masks_, row_length_);
    __syncthreads();
  }

  /// Writes this CTA's counts to the workspace.
  __device__ __forceinline__ void publish_counts() {
    for (int group = thread_; group < published_length_; group += kNumThreads) {
      std::int32_t size = 0;
      if (group < num_groups_) {
#pragma unroll 8
        for (int row = 0; row < ids_.num_rows(); ++row) size += counts_[row * row_length_ + group];
      }
      group_sizes_[group] = size;
      published_counts_[cta_ * published_length_ + group] = static_cast<std::uint16_t>(size);
    }
    if (warp_ == kNumWarps - 1 && counts_dropped()) {
      const std::uint32_t dropped = __reduce_add_sync(
          kAllLanes,
          lane_ < ids_.num_rows() ? counts_[lane_ * row_length_ + dropped_bucket(args_)] : 0u);
      if (lane_ == 0) published_dropped_[cta_] = dropped;
    }
  }

  /// Sorts this CTA's ids by group.
  __device__ __forceinline__ void sort_ids() {
    num_sorted_ = scan_items<kNumWarps>(
        0, num_groups_, kNumThreads, scan_storage_,
        [&](int group, bool exists) { return exists ? group_sizes_[group] : 0; },
        [](std::int32_t size) { return size; },
        [&](int group, std::int32_t, std::int32_t start) {
          sorted_starts_[group] = start;
          scan_column(counts_, row_length_, ids_.num_rows(), group, start);
        });
    ids_.for_each_in_group(num_groups_, [&](std::uint32_t bucket, std::uint32_t rank, int i) {
      sorted_[counts_[warp_ * row_length_ + bucket] + rank] = bucket << 16 | i;
    });
  }

  /// Adds up the published counts, a share of the CTAs per warp: `partial_sums` gets the sums of
  /// each share, `starts` the sums over those CTAs of this CTA's share that precede it.
  __device__ __forceinline__ void add_up_counts() {
    const int first_cta = warp_ * ctas_per_share();
    const int end_cta = min(num_ctas_, first_cta + ctas_per_share());
    std::uint32_t num_dropped = 0;
    if (counts_dropped() && cta_ == 0) {
      for (int other = first_cta + lane_; other < end_cta; other += 32) {
        num_dropped += __ldcg(&published_dropped_[other]);
      }
    }
    for (int column = lane_ * 8; column < published_length_; column += 32 * 8) {
      add_up_columns(column, first_cta, end_cta);
    }
    if (counts_dropped() && cta_ == 0) {
      num_dropped = __reduce_add_sync(kAllLanes, num_dropped);
      if (lane_ == 0) report_storage_.dropped[warp_] = num_dropped;
    }
    __syncthreads();
  }

  /// Gives the groups their blocks, and this CTA its place in each group.
  __device__ __forceinline__ void lay_out_groups() {
    const int own_share = cta_ / ctas_per_share();
    total_blocks_ = scan_groups<kNumWarps>(
        args_.base, 0, num_groups_, kNumThreads, scan_storage_,
        [&](int group, bool exists) {
          const GroupCounts all = exists ? sum_over_shares(group, own_share) : GroupCounts{};
          if (args_.statistics != nullptr && cta_ == 0) {
            add_loads(args_, &report_storage_.loads, group, all.count, lane_);
          }
          return all;
        },
        [&](int group, const GroupCounts& all, std::int32_t first_block) {
          group_sizes_[group] = all.count;
          first_blocks_[group] = first_block;
          starts_[group] = first_block * args_.base.block_size + all.before - sorted_starts_[group];
          if (cta_ == 0) store_count(args_, group, all.count);
        });
    if (args_.statistics != nullptr && cta_ == 0 && thread_ == kNumThreads - 1) {
      write_statistics(args_, report_storage_.loads, total_blocks_);
    }
  }

  /// Writes this CTA's ids, and its share of everything else.
  __device__ __forceinline__ void write_outputs() {
#pragma unroll 4
    for (int j = thread_; j < num_sorted_; j += kNumThreads) {
      const std::uint32_t entry = sorted_[j];
      place_id(args_, starts_[entry >> 16] + j,
               ids_.cta_first() + static_cast<std::int32_t>(entry & 0xffff));
    }
    for (int group = cta_ * kNumWarps + warp_; group < num_groups_;
         group += num_ctas_ * kNumWarps) {
      finish_group(args_, group, first_blocks_[group], group_sizes_[group], !args_.base.fills_first,
                   lane_);
    }
    if (!args_.base.fills_first) {
      fill(args_.base.sorted_token_ids, std::int64_t{total_blocks_} * args_.base.block_size,
           args_.base.sorted_token_ids_length, args_.base.num_ids, grid_thread_, grid_threads_);
    }
    fill(args_.base.expert_ids, total_blocks_, args_.base.expert_ids_length, shown_tail(args_),
         grid_thread_, grid_threads_);
    if (cta_ == 0 && thread_ == 0) {
      *args_.base.num_tokens_post_pad = total_blocks_ * args_.base.block_size;
    }
  }

  /// Writes num_dropped and `validation`, by one warp of the grid.
  __device__ __forceinline__ void report_dropped() {
    if (cta_ != 0 || warp_ != 0 || !counts_dropped()) return;
    const std::uint32_t num_dropped =
        __reduce_add_sync(kAllLanes, lane_ < kNumWarps ? report_storage_.dropped[lane_] : 0u);
    if (args_.base.num_dropped != nullptr && lane_ == 0) *args_.base.num_dropped = num_dropped;
    if (args_.validation == nullptr) return;
    std::int64_t first_cta = 0;
    if (num_dropped != 0) {
      while (__ldcg(&published_dropped_[first_cta]) == 0) ++first_cta;
    }
    report_validation<kWidth>(args_, num_dropped, first_cta * args_.base.ids_per_cta,
                              report_storage_.has_invalid_entry, lane_);
  }

 private:
  /// The position of this CTA's first id, which may be past the end of topk_ids and of int32.
  __device__ __forceinline__ std::int64_t first_id() const {
    return std::int64_t{cta_} * args_.base.ids_per_cta;
  }

  __device__ __forceinline__ int num_ids() const {
    return static_cast<int>(max(std::int64_t{0}, min(std::int64_t{args_.base.ids_per_cta},
                                                     args_.base.num_ids - first_id())));
  }

  __device__ __forceinline__ bool counts_dropped() const {
    constexpr bool kIsExtended = std::is_same_v<Args, AlignBlockSizeExtendedArgs>;
    return kIsExtended && (args_.base.num_dropped != nullptr || args_.validation != nullptr);
  }

  __device__ __forceinline__ int ctas_per_share() const {
    return (num_ctas_ + kNumWarps - 1) / kNumWarps;
  }

  /// Adds up eight columns of the CTAs [first_cta, end_cta).
  __device__ __forceinline__ void add_up_columns(int column, int first_cta, int end_cta) {
    std::int32_t sum[8] = {};
    std::int32_t before[8] = {};
#pragma unroll 4
    for (int other = first_cta; other < end_cta; ++other) {
      // Written by other CTAs in this launch: not through the read-only path.
      const uint4 words = __ldcg(
          reinterpret_cast<const uint4*>(published_counts_ + other * published_length_ + column));
      const std::uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const std::int32_t count = k % 2 == 0 ? word[k / 2] & 0xffff : word[k / 2] >> 16;
        sum[k] += count;
        if (other < cta_) before[k] += count;
      }
    }
    auto* const out = reinterpret_cast<int4*>(partial_sums_ + warp_ * row_length_ + column);
    out[0] = make_int4(sum[0], sum[1], sum[2], sum[3]);
    out[1] = make_int4(sum[4], sum[5], sum[6], sum[7]);
    if (cta_ / ctas_per_share() == warp_) {
      auto* const own = reinterpret_cast<int4*>(starts_ + column);
      own[0] = make_int4(before[0], before[1], before[2], before[3]);
      own[1] = make_int4(before[4], before[5], before[6], before[7]);
    }
  }

  __device__ __forceinline__ GroupCounts sum_over_shares(int group, int own_share) const {
    GroupCounts sum{0, static_cast<std::uint32_t>(starts_[group])};
#pragma unroll
    for (int share = 0; share < kNumWarps; ++share) {
      const std::int32_t count = partial_sums_[share * row_length_ + group];
      sum.count += count;
      if (share < own_share) sum.before += count;
    }
    return sum;
  }

  const Args args_;  // a copy: stores might alias arguments behind a reference
  ScanStorage& scan_storage_;
  ReportStorage& report_storage_;
  const int thread_ = threadIdx.x;
  const int lane_ = thread_ % 32;
  const int warp_ = thread_ / 32;
  const int cta_ = blockIdx.x;
  const int num_ctas_ = gridDim.x;
  const int grid_thread_ = cta_ * kNumThreads + thread_;
  const int grid_threads_ = num_ctas_ * kNumThreads;
  RankedIds<kWidth, grid_max_ids_per_thread(kNumThreads)> ids_;
  const int num_groups_;
  const int row_length_;
  std::int32_t num_sorted_ = 0;
  std::int32_t total_blocks_ = 0;
  // In shared memory: see GridLayout.
  std::int32_t* group_sizes_;
  std::int32_t* starts_;
  std::int32_t* sorted_starts_;
  std::int32_t* first_blocks_;
  std::uint32_t* masks_;
  std::int32_t* partial_sums_;
  std::uint32_t* sorted_;
  std::uint16_t* counts_;
  // In the workspace: see GridWorkspace.
  int published_length_;
  std::uint16_t* published_counts_;
  std::uint32_t* published_dropped_;
};

template <IdWidth kWidth, int kNumThreads, typename Args>
__global__ void __launch_bounds__(kNumThreads) grid_kernel(const __grid_constant__ Args args) {
  using Cta = GridCta<kWidth, kNumThreads, Args>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  __shared__ typename Cta::ReportStorage report_storage;
  const auto grid = cooperative_groups::this_grid();
  Cta cta(args, shared, scan_storage, report_storage);
  prefetch_args(args);
  cta.clear();
  pdl_wait();
  cta.load_ids();
  cta.rank_ids();
  cta.publish_counts();
  auto token = grid.barrier_arrive();
  cta.sort_ids();
  grid.barrier_wait(std::move(token));
  pdl_launch_dependents();
  cta.add_up_counts();
  cta.lay_out_groups();
  cta.write_outputs();
  cta.report_dropped();
}

template <int kNumThreads>
constexpr InstanceRow kRow{kNumThreads,
                           {grid_kernel<IdWidth::kNarrow, kNumThreads, AlignBlockSizePlainArgs>,
                            grid_kernel<IdWidth::k32, kNumThreads, AlignBlockSizePlainArgs>,
                            grid_kernel<IdWidth::k64, kNumThreads, AlignBlockSizePlainArgs>},
                           {grid_kernel<IdWidth::kNarrow, kNumThreads, AlignBlockSizeExtendedArgs>,
                            grid_kernel<IdWidth::k32, kNumThreads, AlignBlockSizeExtendedArgs>,
                            grid_kernel<IdWidth::k64, kNumThreads, AlignBlockSizeExtendedArgs>}};

}  // namespace

const void* align_block_size_grid_kernel(const Instance& instance) {
  static constexpr InstanceRow kRows[] = {kRow<512>, kRow<1024>};
  return find_instance(kRows, instance);
}

}  // namespace tessera::cuda
