// Several CTAs that do not wait for each other: each scans the counts of all batches, and then
// writes its share of the outputs, whichever batches it belongs to.
#include "cuda/batched_align_block_size/kernel.hpp"
#include "cuda/parts/block_scan.cuh"
#include "cuda/parts/carve.cuh"
#include "cuda/parts/division.cuh"
#include "cuda/parts/fill.cuh"
#include "cuda/parts/pdl.cuh"

namespace tessera::cuda {
namespace {

using Args = BatchedAlignBlockSizeKernelArgs;

constexpr int kNumWarps = kBatchedNumThreads / 32;

static_assert(sizeof(ScanStorage) <= kBatchedStaticSharedBytes);

__device__ __forceinline__ std::int32_t count_of(const Args& args, std::int32_t batch) {
  return min(max(args.expert_num_tokens[batch], 0), args.max_tokens_per_batch);
}

/// The slots of one batch.
struct BatchSlots {
  std::int32_t batch;
  std::uint32_t begin;
  std::uint32_t padding;  // first slot of the padding
  std::uint32_t end;      // first slot of the next batch
};

/// Finds the batch of a slot that belongs to one. `starts` has num_batches + 1 entries.
__device__ __forceinline__ BatchSlots find_batch(const Args& args, const std::uint32_t* starts,
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

/// Writes value_at(0), value_at(1), ... to `out`. Each warp of the grid writes one part, in
/// ascending order and 16 bytes at a time where the alignment permits.
template <typename ValueAt>
__device__ __forceinline__ void write_values(std::int32_t* out, std::uint32_t length,
                                             ValueAt value_at) {
  const std::uint32_t lane = threadIdx.x % 32;
  const std::uint32_t warp = blockIdx.x * kNumWarps + threadIdx.x / 32;
  const std::uint32_t num_warps = gridDim.x * kNumWarps;
  // The first word is aligned to 16 bytes, and so may begin before `out`.
  const auto skew =
      static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(out) / sizeof(std::int32_t) % 4);
  const std::uint32_t num_words = (length + skew + 3) / 4;
  const std::uint32_t rows_per_warp = ((num_words + 31) / 32 + num_warps - 1) / num_warps;
  const std::uint32_t first = warp * rows_per_warp * 32;
  const std::uint32_t end = min(first + rows_per_warp * 32, num_words);
  for (std::uint32_t word = first + lane; word < end; word += 32) {
    const std::uint32_t i = word * 4 - skew;  // before `out`: a large number
    if (i < length && length - i >= 4) {
      // Braces fix the order of evaluation.
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
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ ScanStorage scan_storage;
  std::uint32_t* const starts = carve(shared, BatchedLayout(args.num_batches).starts);

  pdl_launch_dependents();
  pdl_wait();
  // One item more than there are batches, for the end of the last one.
  const std::int32_t total_blocks = scan_items<kNumWarps>(
      0, args.num_batches + 1, kBatchedNumThreads, scan_storage,
      [&](std::int32_t batch, bool) {
        return batch < args.num_batches ? divide_up(count_of(args, batch), args.block_division) : 0;
      },
      [](std::int32_t num_blocks) { return num_blocks; },
      [&](std::int32_t batch, std::int32_t, std::int32_t first_block) {
        starts[batch] = first_block * args.block_size;
      });

  const std::uint32_t total = static_cast<std::uint32_t>(total_blocks) * args.block_size;
  BatchSlots slots{};  // no slots
  write_values(args.sorted_token_ids, total, [&](std::uint32_t slot) {
    if (slot >= slots.end) slots = find_batch(args, starts, slot);
    return slot < slots.padding ? static_cast<std::int32_t>(
                                      slots.batch * args.max_tokens_per_batch + slot - slots.begin)
                                : args.filler;
  });
  slots = {};
  write_values(args.expert_ids, total_blocks, [&](std::uint32_t block) {
    const std::uint32_t slot = block * args.block_size;
    if (slot >= slots.end) slots = find_batch(args, starts, slot);
    return slots.batch;
  });
  const int grid_thread = blockIdx.x * kBatchedNumThreads + threadIdx.x;
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
