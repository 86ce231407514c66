// One CTA, or the CTAs of one cluster, write the output row of one adapter. Each warp passes over
// its run of consecutive ids twice. First it counts the ids of the adapter. When the counts of all
// warps have become the slots at which each warp starts in each group, it places these ids. Between
// the two passes the CTAs of a row read each other's counts from shared memory.
#include <cooperative_groups.h>

#include <utility>

#include "cuda/align_block_size/buckets.cuh"
#include "cuda/align_block_size/groups.cuh"
#include "cuda/lora_align_block_size/kernel.hpp"
#include "cuda/parts/block_scan.cuh"
#include "cuda/parts/carve.cuh"
#include "cuda/parts/fill.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp_rank.cuh"

namespace tessera::cuda {
namespace {

using LoraArgs = LoraAlignBlockSizeKernelArgs;

constexpr int kMaxWarps = kLoraMaxThreads / 32;
constexpr int kLoadsInFlight = 4;

static_assert(sizeof(ScanStorage) <= kLoraStaticSharedBytes);

/// Waits for all CTAs of a row, and makes their writes to shared memory visible to each other.
__device__ __forceinline__ void sync_row() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __syncthreads();  // a row is one CTA
#endif
}

/// Reads a word of another CTA of the row; `own` is its address in this CTA.
__device__ __forceinline__ std::uint32_t read_from(const std::uint32_t* own,
                                                   [[maybe_unused]] int cta) {
#if __CUDA_ARCH__ >= 900
  return *cooperative_groups::this_cluster().map_shared_rank(own, cta);
#else
  return *own;
#endif
}

/// Whether an adapter is enabled and in use. Called by all threads of a CTA.
__device__ __forceinline__ bool is_active(const LoraArgs& args, std::int32_t adapter) {
  bool is_in_use = !args.has_lora_ids;
  for (std::int64_t k = threadIdx.x; k < args.num_lora_ids; k += blockDim.x) {
    is_in_use |= args.lora_ids[k] == adapter;
  }
  const bool is_enabled = args.adapter_enabled == nullptr || args.adapter_enabled[adapter] != 0;
  return __syncthreads_or(is_in_use && is_enabled) != 0;
}

/// The ids of one adapter among the warp's share [begin, end) of topk_ids.
template <IdWidth kWidth>
struct WarpIds {
  const LoraArgs& args;
  std::int32_t adapter;
  std::uint32_t begin;
  std::uint32_t end;

  /// Calls visit(i, bucket) by whole warps. A lane without an id of the adapter gets the bucket of
  /// what is not placed.
  template <typename Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    const AlignBlockSizePlainArgs& pairs = args.first_row;
    const int lane = threadIdx.x % 32;
    for (std::uint32_t base = begin; base < end; base += 32 * kLoadsInFlight) {
      std::int32_t adapters[kLoadsInFlight];
      RawId<kWidth> ids[kLoadsInFlight];
#pragma unroll
      for (int k = 0; k < kLoadsInFlight; ++k) {
        const std::uint32_t i = base + 32 * k + lane;
        if (i < end) {
          adapters[k] = args.token_lora_mapping[divide(i, args.top_k_division)];
          ids[k] = load_id<kWidth>(pairs.base, static_cast<std::int32_t>(i));
        }
      }
#pragma unroll
      for (int k = 0; k < kLoadsInFlight; ++k) {
        const std::uint32_t i = base + 32 * k + lane;
        const bool is_in_row = i < end && adapters[k] == adapter;
        if (!__any_sync(kAllLanes, is_in_row)) continue;
        visit(i, is_in_row ? bucket_of<kWidth>(pairs, ids[k]) : unplaced_bucket(pairs));
      }
    }
  }
};

/// The arguments of align_block_size for the row of an adapter.
__device__ __forceinline__ AlignBlockSizeKernelArgs row_of(const LoraArgs& args,
                                                           std::int32_t adapter) {
  AlignBlockSizeKernelArgs row = args.first_row.base;
  row.sorted_token_ids += adapter * row.sorted_token_ids_length;
  row.expert_ids += adapter * row.expert_ids_length;
  row.num_tokens_post_pad += adapter;
  return row;
}

/// One CTA of a row. The kernel calls its steps in the order in which they stand here.
template <IdWidth kWidth>
class LoraCta {
 public:
  __device__ __forceinline__ LoraCta(const LoraArgs& args, unsigned char* shared,
                                     ScanStorage& scan_storage)
      : args_(args), row_(row_of(args, adapter_)), scan_storage_(scan_storage) {
    const LoraLayout layout(num_experts_, num_warps_);
    cta_counts_ = carve(shared, layout.cta_counts);
    first_blocks_ = carve(shared, layout.first_blocks);
    counts_ = carve(shared, layout.counts);
    masks_ = carve(shared, layout.masks);
  }

  __device__ __forceinline__ void clear() {
    clear_shared(counts_, 2 * num_warps_ * row_length_ * 4, thread_, num_threads_);
    // A CTA may have fewer warps than the scan adds up.
    if (thread_ < kMaxWarps) scan_storage_.warp_sums[thread_] = 0;
  }

  __device__ __forceinline__ void fill_slots() {
    fill(row_.sorted_token_ids, 0, row_.sorted_token_ids_length, row_.num_ids, row_thread_,
         row_threads_);
  }

  /// Writes the outputs of an adapter that is not active.
  __device__ __forceinline__ void write_empty_row() {
    fill(row_.expert_ids, 0, row_.expert_ids_length, row_.tail_expert, row_thread_, row_threads_);
    if (row_thread_ == 0) *row_.num_tokens_post_pad = 0;
  }

  /// This warp's ids: none if the row is not active.
  __device__ __forceinline__ WarpIds<kWidth> ids_of_warp(bool is_row_active) const {
    const std::uint64_t first = (std::uint64_t(cta_) * num_warps_ + warp_) * args_.ids_per_warp;
    const std::uint64_t num_ids = warp_ < num_warps_ && is_row_active ? row_.num_ids : 0;
    return {args_, adapter_, static_cast<std::uint32_t>(min(first, num_ids)),
            static_cast<std::uint32_t>(min(first + args_.ids_per_warp, num_ids))};
  }

  __device__ __forceinline__ void count(const WarpIds<kWidth>& ids) {
    std::uint32_t* const warp_counts = counts_ + warp_ * row_length_;
    ids.for_each([&](std::uint32_t, std::uint32_t bucket) {
      if (bucket < num_experts_) atomicAdd(&warp_counts[bucket], 1u);
    });
    __syncthreads();
    for (int expert = thread_; expert < num_experts_; expert += num_threads_) {
      cta_counts_[expert] = scan_column(counts_, row_length_, num_warps_, expert);
    }
  }

  /// Gives the groups their blocks; the warps' counts become the next slot of each warp in each
  /// group.
  __device__ __forceinline__ void lay_out_groups() {
    total_blocks_ = scan_groups<kMaxWarps>(
        row_, 0, num_experts_, num_threads_, scan_storage_,
        [&](int expert, bool exists) {
          GroupCounts sum{};
          for (int other = 0; exists && other < num_ctas_; ++other) {
            const std::uint32_t count = read_from(&cta_counts_[expert], other);
            sum.count += count;
            if (other < cta_) sum.before += count;
          }
          return sum;
        },
        [&](int expert, const GroupCounts& all, std::int32_t first_block) {
          first_blocks_[expert] = first_block;
          const std::uint32_t start = first_block * row_.block_size + all.before;
          for (int warp = 0; warp < num_warps_; ++warp) {
            counts_[warp * row_length_ + expert] += start;
          }
        });
    if (thread_ == 0) first_blocks_[num_experts_] = total_blocks_;
    __syncthreads();
  }

  __device__ __forceinline__ void place(const WarpIds<kWidth>& ids) {
    std::uint32_t* const next_slots = counts_ + warp_ * row_length_;
    std::uint32_t* const masks = masks_ + warp_ * row_length_;
    ids.for_each([&](std::uint32_t i, std::uint32_t bucket) {
      const std::uint32_t slot = rank_in_warp(next_slots, masks, bucket, lane_);
      // The ids may have changed since they were counted. A branch costs less here than a minimum.
      if (bucket < num_experts_ && slot <= row_.last_slot) {
        row_.sorted_token_ids[slot] = static_cast<std::int32_t>(i);
      }
    });
  }

  /// Writes the row's other outputs.
  __device__ __forceinline__ void write_blocks() {
    for (int expert = cta_ + num_ctas_ * warp_; expert < num_experts_;
         expert += num_ctas_ * (num_threads_ / 32)) {
      // Unsigned: the end of the last block may be 2^31.
      const std::uint32_t end = first_blocks_[expert + 1];
      for (std::uint32_t block = first_blocks_[expert] + lane_; block < end; block += 32) {
        row_.expert_ids[block] = expert;
      }
    }
    fill(row_.expert_ids, total_blocks_, row_.expert_ids_length, row_.tail_expert, row_thread_,
         row_threads_);
    if (row_thread_ == 0) *row_.num_tokens_post_pad = total_blocks_ * row_.block_size;
  }

  __device__ __forceinline__ std::int32_t adapter() const { return adapter_; }

 private:
  const LoraArgs args_;  // a copy: stores might alias arguments behind a reference
  const int thread_ = threadIdx.x;
  const int num_threads_ = blockDim.x;
  const int lane_ = thread_ % 32;
  const int warp_ = thread_ / 32;
  const int num_ctas_ = args_.ctas_per_row;
  const int cta_ = blockIdx.x % num_ctas_;  // within the row
  const std::int32_t adapter_ = blockIdx.x / num_ctas_;
  const int row_thread_ = cta_ * num_threads_ + thread_;
  const int row_threads_ = num_ctas_ * num_threads_;
  const AlignBlockSizeKernelArgs row_;
  ScanStorage& scan_storage_;
  const int num_experts_ = row_.num_experts;
  const int num_warps_ = args_.counting_warps;
  const int row_length_ = counters_per_row(num_experts_);
  std::int32_t total_blocks_ = 0;
  // In shared memory: see LoraLayout.
  std::uint32_t* cta_counts_;
  std::int32_t* first_blocks_;
  std::uint32_t* counts_;
  std::uint32_t* masks_;
};

template <IdWidth kWidth>
__global__ void __launch_bounds__(kLoraMaxThreads)
    lora_kernel(const __grid_constant__ LoraAlignBlockSizeKernelArgs args) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  LoraCta<kWidth> cta(args, shared, scan_storage);
  pdl_launch_dependents();
  cta.clear();
  pdl_wait();
  cta.fill_slots();
  const bool is_row_active = is_active(args, cta.adapter());
  // The CTAs of a row wait for each other, and the lists of adapters may change meanwhile: where
  // there are several, one that finds its adapter inactive goes on without ids.
  if (!is_row_active && args.ctas_per_row == 1) {
    cta.write_empty_row();
    return;
  }
  const WarpIds<kWidth> ids = cta.ids_of_warp(is_row_active);
  cta.count(ids);
  sync_row();
  cta.lay_out_groups();
#if __CUDA_ARCH__ >= 900
  // A CTA's shared memory must outlive the reads by the others.
  auto&& token = cooperative_groups::this_cluster().barrier_arrive();
#endif
  cta.place(ids);
  cta.write_blocks();
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().barrier_wait(std::move(token));
#endif
}

}  // namespace

const void* lora_align_block_size_kernel(IdWidth width) {
  static constexpr void (*kKernels[kNumIdWidths])(LoraArgs) = {
      lora_kernel<IdWidth::kNarrow>, lora_kernel<IdWidth::k32>, lora_kernel<IdWidth::k64>};
  return reinterpret_cast<const void*>(kKernels[static_cast<std::size_t>(width)]);
}

}  // namespace tessera::cuda
