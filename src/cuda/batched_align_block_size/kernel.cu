// Several CTAs, none of which waits for another: each scans the counts of all batches, and then
// writes its share of the outputs, whichever batches that belongs to.
#include "cuda/batched_align_block_size/kernel.hpp"
#include "cuda/parts/block_scan.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/fill.cuh"
#include "cuda/parts/pdl.cuh"

namespace tessera::cuda {
namespace {

using Args = BatchedAlignBlockSizeKernelArgs;

constexpr int kNumWarps = kBatchedNumThreads / 32;

__device__ __forceinline__ std::int32_t count_of(const Args& args, std::int32_t batch) {
  return min(max(args.expert_num_tokens[batch], 0), args.max_tokens_per_batch);
}

/// The slots of one batch.
struct Group {
  std::int32_t batch;
  std::uint32_t begin;
  std::uint32_t members_end;  // first slot of padding
  std::uint32_t end;          // first slot of the next batch
};

/// Finds the batch of a slot that belongs to one, in `starts`, of which there are num_batches + 1.
__device__ __forceinline__ Group group_at(const Args& args, const std::uint32_t* starts,
                                          std::uint32_t slot) {
  std::int32_t low = 0;
  std::int32_t high = args.num_batches;
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    if (starts[middle] <= slot) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return {low, starts[low], starts[low] + count_of(args, low), starts[low + 1]};
}

/// Writes value_at(0), value_at(1), ... to `out` by all warps of the grid, each a part of its own
/// and in ascending order, in words of 16 bytes where they fit.
template <typename ValueAt>
__device__ __forceinline__ void write_values(std::int32_t* out, std::uint32_t length,
                                             ValueAt value_at) {
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t warp = blockIdx.x * kNumWarps + threadIdx.x / 32;
  const std::uint32_t num_warps = gridDim.x * kNumWarps;
  // The first word begins where 16 bytes do, and so may begin before `out`.
  const auto skew =
      static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(out) / sizeof(std::int32_t) % 4);
  const std::uint32_t num_words = (length + skew + 3) / 4;
  const std::uint32_t rows_per_warp = ((num_words + 31) / 32 + num_warps - 1) / num_warps;
  const std::uint32_t first = warp * rows_per_warp * 32;
  const std::uint32_t end = min(first + rows_per_warp * 32, num_words);
  for (std::uint32_t word = first + lane; word < end; word += 32) {
    const std::uint32_t i = word * 4 - skew;  // before `out`: a large number
    if (i < length && length - i >= 4) {
      // In braces, for the order in which they are evaluated.
      *reinterpret_cast<int4*>(out + i) =
          int4{value_at(i), value_at(i + 1), value_at(i + 2), value_at(i + 3)};
      continue;
    }
    for (std::uint32_t k = 0; k < 4; ++k) {
      if (i + k < length) out[i + k] = value_at(i + k);
    }
  }
}

__global__ void __launch_bounds__(kBatchedNumThreads)
    batched_kernel(const __grid_constant__ Args args) {
  extern __shared__ std::uint32_t starts[];
  __shared__ std::int32_t warp_sums[kBatchedStaticSharedBytes / sizeof(std::int32_t)];
  const int thread = threadIdx.x;
  const int lane = thread % 32;
  const int warp = thread / 32;

  let_successor_start();
  wait_for_predecessor();
  std::int32_t total_blocks = 0;
  // One past the last batch, to have an end of that, too.
  for (std::int32_t base = 0; base <= args.num_batches; base += kBatchedNumThreads) {
    const std::int32_t batch = base + thread;
    const std::int32_t num_blocks =
        batch < args.num_batches ? blocks_of(args, count_of(args, batch)) : 0;
    std::int32_t chunk_blocks;
    const std::int32_t first_block =
        total_blocks + exclusive_sum<kNumWarps>(num_blocks, warp_sums, lane, warp, &chunk_blocks);
    if (batch <= args.num_batches) starts[batch] = first_block * args.block_size;
    total_blocks += chunk_blocks;
    __syncthreads();
  }

  const std::uint32_t total = static_cast<std::uint32_t>(total_blocks) * args.block_size;
  Group group{};  // of no slot
  write_values(args.sorted_token_ids, total, [&](std::uint32_t slot) {
    if (slot >= group.end) group = group_at(args, starts, slot);
    return slot < group.members_end
               ? static_cast<std::int32_t>(group.batch * args.max_tokens_per_batch + slot -
                                           group.begin)
               : args.filler;
  });
  group = {};
  write_values(args.expert_ids, total_blocks, [&](std::uint32_t block) {
    const std::uint32_t slot = block * args.block_size;
    if (slot >= group.end) group = group_at(args, starts, slot);
    return group.batch;
  });
  const int grid_thread = blockIdx.x * kBatchedNumThreads + thread;
  const int grid_threads = gridDim.x * kBatchedNumThreads;
  fill(args.sorted_token_ids, total, args.sorted_token_ids_length, args.filler, grid_thread,
       grid_threads);
  fill(args.expert_ids, total_blocks, args.expert_ids_length, args.tail_expert, grid_thread,
       grid_threads);
  if (grid_thread == 0) *args.num_tokens_post_pad = static_cast<std::int32_t>(total);
}

}  // namespace

const void* batched_align_block_size_kernel() {
  return reinterpret_cast<const void*>(&batched_kernel);
}

}  // namespace tessera::cuda
