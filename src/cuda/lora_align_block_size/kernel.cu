// A row of the outputs, that of one adapter, is made by one CTA or by the CTAs of a cluster. Each
// warp goes through a run of consecutive ids twice: it counts those of the row, and, when the
// counts of all warps have become the slots at which each starts in each group, it places them.
// Between the two passes CTAs read each other's counts from shared memory.
#include <cooperative_groups.h>

#include <utility>

#include "cuda/align_block_size/device.cuh"
#include "cuda/lora_align_block_size/kernel.hpp"

namespace tessera::cuda {
namespace {

using LoraArgs = LoraAlignBlockSizeKernelArgs;

constexpr int kMaxWarps = kLoraMaxThreads / 32;
constexpr int kLoadsInFlight = 4;

/// Waits for all CTAs of a row, and makes what they wrote visible to each other.
__device__ __forceinline__ void sync_row() {
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#else
  __syncthreads();  // a row is one CTA
#endif
}

/// What another CTA of the row has where this one has `own`, in shared memory.
__device__ __forceinline__ std::uint32_t read_from(const std::uint32_t* own,
                                                   [[maybe_unused]] int cta) {
#if __CUDA_ARCH__ >= 900
  return *cooperative_groups::this_cluster().map_shared_rank(own, cta);
#else
  return *own;
#endif
}

/// Asked by all threads of a CTA at once.
__device__ __forceinline__ bool is_active(const LoraArgs& args, std::int32_t adapter) {
  bool is_in_use = !args.has_lora_ids;
  for (std::int64_t k = threadIdx.x; k < args.num_lora_ids; k += blockDim.x) {
    is_in_use |= args.lora_ids[k] == adapter;
  }
  const bool is_enabled = args.adapter_enabled == nullptr || args.adapter_enabled[adapter] != 0;
  return __syncthreads_or(is_in_use && is_enabled) != 0;
}

/// Has a warp call visit(i, bucket) for ids [begin, end), 32 at a time; where there is no id, or
/// not one of this adapter's, the bucket is the unplaced one.
template <IdWidth kWidth, typename Visit>
__device__ __forceinline__ void for_each_id(const LoraArgs& args, std::int32_t adapter,
                                            std::uint32_t begin, std::uint32_t end, int lane,
                                            Visit visit) {
  const AlignBlockSizePlainArgs& pairs = args.first_row;
  for (std::uint32_t base = begin; base < end; base += 32 * kLoadsInFlight) {
    std::int32_t adapters[kLoadsInFlight];
    RawId<kWidth> ids[kLoadsInFlight];
#pragma unroll
    for (int k = 0; k < kLoadsInFlight; ++k) {
      const std::uint32_t i = base + 32 * k + lane;
      if (i < end) {
        adapters[k] = args.token_lora_mapping[divide(i, args.top_k_division)];
        ids[k] = load_id<kWidth>(pairs, static_cast<std::int32_t>(i));
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

template <IdWidth kWidth>
__global__ void __launch_bounds__(kLoraMaxThreads)
    lora_kernel(const __grid_constant__ LoraAlignBlockSizeKernelArgs args) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ std::int32_t warp_sums[kMaxWarps];
  const int thread = threadIdx.x;
  const int num_threads = blockDim.x;
  const int lane = thread % 32;
  const int warp = thread / 32;
  const int num_ctas = args.ctas_per_row;
  const int cta = blockIdx.x % num_ctas;
  const std::int32_t adapter = blockIdx.x / num_ctas;
  const int row_thread = cta * num_threads + thread;
  const int row_threads = num_ctas * num_threads;
  AlignBlockSizePlainArgs row = args.first_row;
  row.sorted_token_ids += adapter * row.sorted_token_ids_length;
  row.expert_ids += adapter * row.expert_ids_length;
  row.num_tokens_post_pad += adapter;

  const int num_experts = row.num_experts;
  const int num_warps = args.counting_warps;
  const int row_length = counters_per_row(num_experts);
  auto* const totals = reinterpret_cast<std::uint32_t*>(shared);  // of this CTA; others read it
  auto* const first_blocks = reinterpret_cast<std::int32_t*>(totals + row_length);
  auto* const counts = reinterpret_cast<std::uint32_t*>(first_blocks + row_length);
  std::uint32_t* const masks = counts + num_warps * row_length;

  let_successor_start();
  clear_shared(counts, 2 * num_warps * row_length * 4, thread, num_threads);
  if (thread < kMaxWarps) warp_sums[thread] = 0;  // there may be fewer warps
  wait_for_predecessor();

  fill(row.sorted_token_ids, 0, row.sorted_token_ids_length, row.num_ids, row_thread, row_threads);
  const bool is_row_active = is_active(args, adapter);
  if (!is_row_active && num_ctas == 1) {
    fill(row.expert_ids, 0, row.expert_ids_length, row.tail_expert, row_thread, row_threads);
    if (row_thread == 0) *row.num_tokens_post_pad = 0;
    return;
  }

  const std::uint64_t first = (std::uint64_t(cta) * num_warps + warp) * args.ids_per_warp;
  // The CTAs of a row wait for each other, and somebody else may write to the lists of adapters
  // meanwhile: a CTA that finds its adapter inactive takes part, without ids.
  const std::uint64_t num_ids = warp < num_warps && is_row_active ? row.num_ids : 0;
  const auto begin = static_cast<std::uint32_t>(min(first, num_ids));
  const auto end = static_cast<std::uint32_t>(min(first + args.ids_per_warp, num_ids));
  std::uint32_t* const warp_counts = counts + warp * row_length;
  for_each_id<kWidth>(args, adapter, begin, end, lane, [&](std::uint32_t, std::uint32_t bucket) {
    if (bucket < num_experts) atomicAdd(&warp_counts[bucket], 1u);
  });
  __syncthreads();
  for (int expert = thread; expert < num_experts; expert += num_threads) {
    totals[expert] = scan_column(counts, row_length, num_warps, expert);
  }
  sync_row();

  std::int32_t total_blocks = 0;
  for (int chunk = 0; chunk < num_experts; chunk += num_threads) {
    const int expert = chunk + thread;
    const bool exists = expert < num_experts;
    std::uint32_t count = 0;
    std::uint32_t before = 0;
    for (int other = 0; exists && other < num_ctas; ++other) {
      const std::uint32_t of_other = read_from(&totals[expert], other);
      count += of_other;
      if (other < cta) before += of_other;
    }
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        total_blocks +
        exclusive_sum<kMaxWarps>(blocks_of(row, count), warp_sums, lane, warp, &chunk_blocks);
    if (exists) {
      first_blocks[expert] = first_block;
      const std::uint32_t start = first_block * row.block_size + before;
      for (int w = 0; w < num_warps; ++w) counts[w * row_length + expert] += start;
    }
    total_blocks += chunk_blocks;
    __syncthreads();
  }
  if (thread == 0) first_blocks[num_experts] = total_blocks;
  __syncthreads();
#if __CUDA_ARCH__ >= 900
  // A CTA's shared memory must outlive the others' reads of it.
  auto&& token = cooperative_groups::this_cluster().barrier_arrive();
#endif

  // Counts have become the next slots of the warp in each group.
  std::uint32_t* const warp_masks = masks + warp * row_length;
  for_each_id<kWidth>(args, adapter, begin, end, lane, [&](std::uint32_t i, std::uint32_t bucket) {
    const std::uint32_t slot = rank_in_warp(warp_counts, warp_masks, bucket, lane);
    // Ids may have changed since they were counted. Here a branch costs less than a minimum.
    if (bucket < num_experts && slot <= row.last_slot) {
      row.sorted_token_ids[slot] = static_cast<std::int32_t>(i);
    }
  });
  for (int expert = cta + num_ctas * warp; expert < num_experts;
       expert += num_ctas * (num_threads / 32)) {
    // Unsigned: the last block may be the last number of a signed one.
    const std::uint32_t last = first_blocks[expert + 1];
    for (std::uint32_t block = first_blocks[expert] + lane; block < last; block += 32) {
      row.expert_ids[block] = expert;
    }
  }
  fill(row.expert_ids, total_blocks, row.expert_ids_length, row.tail_expert, row_thread,
       row_threads);
  if (row_thread == 0) *row.num_tokens_post_pad = total_blocks * row.block_size;
#if __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().barrier_wait(std::move(token));
#endif
}

}  // namespace

const void* lora_align_block_size_kernel(IdWidth width) {
  return choose_instance<kLoraMaxThreads>(
      width, kLoraMaxThreads, false,
      [](auto id_width, auto, auto) { return &lora_kernel<id_width()>; });
}

}  // namespace tessera::cuda
