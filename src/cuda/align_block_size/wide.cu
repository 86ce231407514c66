// Any number of ids and experts: the counts of each CTA are in the workspace, and every id is read
// twice, to be counted and to be placed, one tile at a time.
#include <cooperative_groups.h>

#include <cub/block/block_radix_sort.cuh>
#include <cub/block/block_scan.cuh>

#include "cuda/align_block_size/groups.cuh"
#include "cuda/align_block_size/instances.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/align_block_size/reports.cuh"
#include "cuda/parts/carve.cuh"

namespace tessera::cuda {
namespace {

constexpr int kNumThreads = 256;
constexpr int kNumWarps = kNumThreads / 32;
constexpr int kItems = kWideIdsPerThread;
constexpr int kTile = kNumThreads * kItems;

using TileSort = cub::BlockRadixSort<std::uint32_t, kNumThreads, kItems, std::uint32_t>;
using RunScan = cub::BlockScan<int, kNumThreads>;

/// Shared memory of one step at a time.
union StepStorage {
  typename TileSort::TempStorage sort;
  typename RunScan::TempStorage run_scan;
  std::uint32_t buckets[kTile + 1];
  ScanStorage scan;
};

/// Shared memory for what the CTA's groups add to the reports.
struct WideReportStorage {
  Loads loads;
  std::uint32_t num_invalid_entries;
  std::uint32_t first_invalid_entry;
};

struct LastStart {
  __device__ int operator()(int a, int b) const { return max(a, b); }
};

/// One CTA of the grid. The kernel calls its steps in the order in which they stand here.
template <IdWidth kWidth, typename Args>
class WideCta {
 public:
  __device__ __forceinline__ WideCta(const Args& args, StepStorage& storage,
                                     WideReportStorage& report_storage)
      : args_(args),
        storage_(storage),
        report_storage_(report_storage),
        num_groups_(num_groups_of(args)),
        first_(std::int64_t{cta_} * args.base.ids_per_cta),
        end_(min(std::int64_t{args.base.num_ids}, first_ + args.base.ids_per_cta)) {
    const std::int64_t groups_per_cta = (num_groups_ + num_ctas_ - 1) / num_ctas_;
    first_group_ = min(num_groups_, cta_ * groups_per_cta);
    end_group_ = min(num_groups_, first_group_ + groups_per_cta);
    const WideWorkspace workspace(num_groups_, num_ctas_);
    counts_ = carve(args.base.workspace, workspace.counts);
    own_counts_ = counts_ + cta_ * num_groups_;
    group_sizes_ = carve(args.base.workspace, workspace.group_sizes);
    first_blocks_ = carve(args.base.workspace, workspace.first_blocks);
    cta_sums_ = carve(args.base.workspace, workspace.cta_sums);
  }

  __device__ __forceinline__ void clear() {
    if (thread_ != 0) return;
    report_storage_.loads = {};
    report_storage_.num_invalid_entries = 0;
    report_storage_.first_invalid_entry = ~0u;
  }

  /// Counts this CTA's ids, in shared memory if it is large enough.
  __device__ __forceinline__ void count_ids() {
    std::uint32_t* const counters = num_groups_ <= kTile ? storage_.buckets : own_counts_;
    for (std::int64_t group = thread_; group < num_groups_; group += kNumThreads) {
      counters[group] = 0;
    }
    __syncthreads();
    int num_dropped = 0;
#pragma unroll 4
    for (std::int64_t i = first_ + thread_; i < end_; i += kNumThreads) {
      const std::uint32_t bucket = bucket_of<kWidth>(args_, load_id<kWidth>(args_.base, i));
      if (bucket < num_groups_of(args_)) atomicAdd(&counters[bucket], 1u);
      num_dropped += bucket == dropped_bucket(args_);
    }
    __syncthreads();
    if (counters != own_counts_) {
      for (std::int64_t group = thread_; group < num_groups_; group += kNumThreads) {
        own_counts_[group] = counters[group];
      }
      __syncthreads();
    }
    std::int32_t cta_dropped;
    exclusive_sum<kNumWarps>(num_dropped, storage_.scan, &cta_dropped);
    if (thread_ == 0) cta_sums_[cta_].dropped = cta_dropped;
  }

  /// Gives this CTA's groups their sizes and their blocks, which it counts from 0, and replaces the
  /// counts of each CTA by the sum of the counts of the CTAs before it.
  __device__ __forceinline__ void size_groups() {
    const std::int32_t num_blocks = scan_groups<kNumWarps>(
        args_.base, first_group_, end_group_, kNumThreads, storage_.scan,
        [&](std::int64_t group, bool exists) -> GroupCounts {
          const std::uint32_t size = exists ? scan_ctas(group) : 0;
          if (args_.statistics != nullptr)
            add_loads(args_, &report_storage_.loads, group, size, lane_);
          if (args_.validation != nullptr && exists) check_entry(group);
          return {size, 0};
        },
        [&](std::int64_t group, const GroupCounts&, std::int32_t first_block) {
          first_blocks_[group] = first_block;
        });
    if (thread_ != 0) return;
    cta_sums_[cta_] = {static_cast<std::uint32_t>(num_blocks), cta_sums_[cta_].dropped,
                       report_storage_.loads.assigned_pairs,   report_storage_.loads.active_experts,
                       report_storage_.loads.max_load,         report_storage_.loads.filtered_pairs,
                       report_storage_.num_invalid_entries,    report_storage_.first_invalid_entry};
  }

  /// Moves this CTA's groups behind the blocks of earlier CTAs, and writes all outputs but the ids.
  __device__ __forceinline__ void finish_groups() {
    std::int32_t blocks_before = 0;
    for (int other = lane_; other < num_ctas_; other += 32) {
      const std::int32_t blocks = __ldcg(&cta_sums_[other].blocks);
      total_blocks_ += blocks;
      if (other < cta_) blocks_before += blocks;
    }
    blocks_before = __reduce_add_sync(kAllLanes, blocks_before);
    total_blocks_ = __reduce_add_sync(kAllLanes, total_blocks_);
    for (std::int64_t group = first_group_ + thread_; group < end_group_; group += kNumThreads) {
      first_blocks_[group] += blocks_before;
    }
    __syncthreads();
    for (std::int64_t group = first_group_ + warp_; group < end_group_; group += kNumWarps) {
      finish_group(args_, group, first_blocks_[group], group_sizes_[group], true, lane_);
    }
    const std::int64_t grid_thread = std::int64_t{cta_} * kNumThreads + thread_;
    const std::int64_t grid_threads = std::int64_t{num_ctas_} * kNumThreads;
    fill(args_.base.sorted_token_ids, std::int64_t{total_blocks_} * args_.base.block_size,
         args_.base.sorted_token_ids_length, args_.base.num_ids, grid_thread, grid_threads);
    fill(args_.base.expert_ids, total_blocks_, args_.base.expert_ids_length, shown_tail(args_),
         grid_thread, grid_threads);
  }

  /// Places this CTA's ids. A stable sort makes the ids of a tile that share a bucket a run, in
  /// their order: the run's first position gives each of them its rank, and the last one advances
  /// the group's cursor, which is the CTA's count of the group.
  __device__ __forceinline__ void place_ids() {
    const int num_bits = 32 - __clz(unplaced_bucket(args_));
    const int first_position = thread_ * kItems;
    for (std::int64_t tile = first_; tile < end_; tile += kTile) {
      std::uint32_t buckets[kItems];
      std::uint32_t offsets[kItems];
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        offsets[k] = first_position + k;
        const std::int64_t i = tile + offsets[k];
        buckets[k] = i < end_ ? bucket_of<kWidth>(args_, load_id<kWidth>(args_.base, i))
                              : unplaced_bucket(args_);
      }
      TileSort(storage_.sort).Sort(buckets, offsets, 0, num_bits);
      __syncthreads();
      int run_starts[kItems];
      const std::uint32_t right = find_runs(buckets, run_starts);
      std::uint32_t cursors[kItems];
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        cursors[k] = buckets[k] < num_groups_of(args_) ? own_counts_[buckets[k]] : 0;
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kItems; ++k) {
        const std::int64_t i = tile + offsets[k];
        if (buckets[k] >= num_groups_of(args_)) {
          if (args_.slots_of_ids != nullptr && i < end_) args_.slots_of_ids[i] = -1;
          continue;
        }
        const std::uint32_t rank = cursors[k] + (first_position + k - run_starts[k]);
        place_counted(args_, __ldcg(&first_blocks_[buckets[k]]) * args_.base.block_size + rank,
                      static_cast<std::int32_t>(i));
        const std::uint32_t next = k + 1 < kItems ? buckets[k + 1] : right;
        if (next != buckets[k]) own_counts_[buckets[k]] = rank + 1;
      }
      __syncthreads();
    }
  }

  /// Writes num_tokens_post_pad, num_dropped, `statistics` and `validation`, by one warp of the
  /// grid.
  __device__ __forceinline__ void write_sums() {
    if (cta_ != 0 || warp_ != 0) return;
    WideCtaSums sum = {};
    sum.first_invalid_entry = ~0u;
    std::uint32_t first_with_dropped = num_ctas_;
    for (int other = lane_; other < num_ctas_; other += 32) {
      const WideCtaSums& cta = cta_sums_[other];
      const std::uint32_t dropped = __ldcg(&cta.dropped);
      if (dropped != 0) first_with_dropped = min(first_with_dropped, other);
      sum.dropped += dropped;
      sum.assigned_pairs += __ldcg(&cta.assigned_pairs);
      sum.active_experts += __ldcg(&cta.active_experts);
      sum.max_load = max(sum.max_load, __ldcg(&cta.max_load));
      sum.filtered_pairs += __ldcg(&cta.filtered_pairs);
      sum.invalid_entries += __ldcg(&cta.invalid_entries);
      sum.first_invalid_entry = min(sum.first_invalid_entry, __ldcg(&cta.first_invalid_entry));
    }
    const std::uint32_t num_dropped = __reduce_add_sync(kAllLanes, sum.dropped);
    if (lane_ == 0) {
      *args_.base.num_tokens_post_pad = total_blocks_ * args_.base.block_size;
      if (args_.base.num_dropped != nullptr) *args_.base.num_dropped = num_dropped;
    }
    if (args_.statistics != nullptr) {
      const Loads loads = {__reduce_add_sync(kAllLanes, sum.assigned_pairs),
                           __reduce_add_sync(kAllLanes, sum.active_experts),
                           __reduce_max_sync(kAllLanes, sum.max_load),
                           __reduce_add_sync(kAllLanes, sum.filtered_pairs)};
      if (lane_ == 0) write_statistics(args_, loads, total_blocks_);
    }
    if (args_.validation != nullptr) {
      const std::int64_t first_cta = __reduce_min_sync(kAllLanes, first_with_dropped);
      InvalidInputs invalid = {num_dropped, 0, __reduce_add_sync(kAllLanes, sum.invalid_entries),
                               __reduce_min_sync(kAllLanes, sum.first_invalid_entry)};
      if (num_dropped != 0) {
        invalid.first_id =
            first_invalid_id<kWidth>(args_, first_cta * args_.base.ids_per_cta, lane_);
      }
      if (lane_ == 0) write_validation<kWidth>(args_, invalid);
    }
  }

 private:
  /// Replaces the CTAs' counts of a group by their prefix sums, and stores the group's size.
  __device__ __forceinline__ std::uint32_t scan_ctas(std::int64_t group) {
    std::uint32_t size = 0;
#pragma unroll 8
    for (int other = 0; other < num_ctas_; ++other) {
      std::uint32_t& before = counts_[other * num_groups_ + group];
      const std::uint32_t count = __ldcg(&before);
      before = size;
      size += count;
    }
    group_sizes_[group] = size;
    store_count(args_, group, size);
    return size;
  }

  __device__ __forceinline__ void check_entry(std::int64_t group) {
    if (args_.base.expert_map == nullptr || group < args_.first_expert) return;
    if (!is_invalid_entry(args_.base, group - args_.first_expert)) return;
    atomicAdd(&report_storage_.num_invalid_entries, 1u);
    atomicMin(&report_storage_.first_invalid_entry,
              static_cast<std::uint32_t>(group) - args_.first_expert);
  }

  /// Finds the first position of each sorted bucket's run. Returns the bucket to the right of this
  /// thread's last one.
  __device__ __forceinline__ std::uint32_t find_runs(const std::uint32_t (&buckets)[kItems],
                                                     int (&run_starts)[kItems]) {
    const int first_position = thread_ * kItems;
#pragma unroll
    for (int k = 0; k < kItems; ++k) storage_.buckets[first_position + k] = buckets[k];
    if (thread_ == 0) storage_.buckets[kTile] = ~0u;
    __syncthreads();
    const std::uint32_t left = first_position == 0 ? ~0u : storage_.buckets[first_position - 1];
    const std::uint32_t right = storage_.buckets[first_position + kItems];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      run_starts[k] = buckets[k] != (k == 0 ? left : buckets[k - 1]) ? first_position + k : 0;
    }
    RunScan(storage_.run_scan).InclusiveScan(run_starts, run_starts, LastStart());
    return right;
  }

  const Args args_;  // a copy: stores might alias arguments behind a reference
  StepStorage& storage_;
  WideReportStorage& report_storage_;
  const int thread_ = threadIdx.x;
  const int lane_ = thread_ % 32;
  const int warp_ = thread_ / 32;
  const int cta_ = blockIdx.x;
  const int num_ctas_ = gridDim.x;
  const std::int64_t num_groups_;
  const std::int64_t first_;  // this CTA's ids
  const std::int64_t end_;
  std::int64_t first_group_;  // the groups that this CTA lays out
  std::int64_t end_group_;
  std::int32_t total_blocks_ = 0;
  // In the workspace: see WideWorkspace.
  std::uint32_t* counts_;
  std::uint32_t* own_counts_;
  std::uint32_t* group_sizes_;
  std::uint32_t* first_blocks_;
  WideCtaSums* cta_sums_;
};

template <IdWidth kWidth, typename Args>
__global__ void __launch_bounds__(kNumThreads) wide_kernel(const __grid_constant__ Args args) {
  __shared__ StepStorage storage;
  __shared__ WideReportStorage report_storage;
  const auto grid = cooperative_groups::this_grid();
  WideCta<kWidth, Args> cta(args, storage, report_storage);
  prefetch_args(args);
  cta.clear();
  pdl_wait();
  cta.count_ids();
  grid.sync();
  cta.size_groups();
  grid.sync();
  cta.finish_groups();
  grid.sync();
  pdl_launch_dependents();
  cta.place_ids();
  cta.write_sums();
}

}  // namespace

const void* align_block_size_wide_kernel(const Instance& instance) {
  static constexpr InstanceRow kRows[] = {
      {kNumThreads,
       {wide_kernel<IdWidth::kNarrow, AlignBlockSizePlainArgs>,
        wide_kernel<IdWidth::k32, AlignBlockSizePlainArgs>,
        wide_kernel<IdWidth::k64, AlignBlockSizePlainArgs>},
       {wide_kernel<IdWidth::kNarrow, AlignBlockSizeExtendedArgs>,
        wide_kernel<IdWidth::k32, AlignBlockSizeExtendedArgs>,
        wide_kernel<IdWidth::k64, AlignBlockSizeExtendedArgs>}}};
  return find_instance(kRows, instance);
}

}  // namespace tessera::cuda
