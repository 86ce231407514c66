// One kernel after the alignment of the pairs, which has written the row of each pair: it writes
// the first row of each expert, and copies rows. A thread reads some words of a token's row once
// and writes them to all rows of the token, so that x is read from memory once.
#include "cuda/moe_permute/kernel.hpp"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {
namespace {

/// The rows in use. Another number than the alignment's own, which ids that change during the call
/// could cause, does not reach beyond the array.
__device__ __forceinline__ std::int32_t rows_in_use(const SortedPairs& sorted) {
  return min(max(*sorted.num_rows, 0), sorted.capacity);
}

/// Consecutive experts whose rows begin at the same one.
struct Experts {
  std::int32_t first;
  std::int32_t last;  ///< before the first: none
};

/// The experts, and the end of all of them, whose rows begin with this block: the block's own
/// expert, and those without rows since the block before. None is outside the array, whatever the
/// blocks hold.
__device__ __forceinline__ Experts experts_from(const MoePermuteKernelArgs& args,
                                                std::int32_t block, std::int32_t num_blocks) {
  if (block > num_blocks) return {0, -1};
  const std::int32_t* const experts = args.sorted.block_experts;
  const std::int32_t before = block == 0 ? -1 : experts[block - 1];
  const std::int32_t expert = block == num_blocks ? args.num_experts : experts[block];
  return {min(max(before, -1), args.num_experts) + 1, min(expert, args.num_experts)};
}

/// Writes the first row of these experts. A thread writes that of a few by itself, and a warp those
/// of many together.
__device__ __forceinline__ void write_offsets(std::int32_t* offsets, Experts experts,
                                              std::int32_t row) {
  constexpr std::int32_t kFew = 8;
  const bool are_many = experts.last - experts.first >= kFew;
  if (!are_many) {
    for (std::int32_t expert = experts.first; expert <= experts.last; ++expert) {
      offsets[expert] = row;
    }
  }
  const int lane = threadIdx.x % 32;
  for (std::uint32_t left = __ballot_sync(kAllLanes, are_many); left != 0; left &= left - 1) {
    const int source = __ffs(left) - 1;
    const std::int32_t last = __shfl_sync(kAllLanes, experts.last, source);
    const std::int32_t their_row = __shfl_sync(kAllLanes, row, source);
    for (std::int32_t expert = __shfl_sync(kAllLanes, experts.first, source) + lane; expert <= last;
         expert += 32) {
      offsets[expert] = their_row;
    }
  }
}

/// Writes the first rows of the experts of this CTA's blocks.
__device__ __forceinline__ void write_offsets(const MoePermuteKernelArgs& args) {
  const SortedPairs& sorted = args.sorted;
  const auto block = static_cast<std::int32_t>(
      min(blockIdx.x * kMoePermuteThreads + threadIdx.x, std::uint32_t{0x7fffffff}));
  const std::int32_t num_blocks = min(rows_in_use(sorted) / sorted.block_size, sorted.max_blocks);
  const Experts experts = experts_from(args, block, num_blocks);
  write_offsets(args.expert_offsets, experts, block > num_blocks ? 0 : block * sorted.block_size);
}

/// Clears the padding among the rows of this CTA.
template <typename Word>
__device__ __forceinline__ void clear_padding(const MoePermuteKernelArgs& args, std::uint32_t cta) {
  const SortedPairs& sorted = args.sorted;
  const std::int64_t first = std::int64_t{cta} * kMoePermutePaddingRows;
  const std::int64_t row = first + threadIdx.x % 32;
  const bool is_padding =
      row < rows_in_use(sorted) &&
      static_cast<std::uint32_t>(sorted.pairs[row]) >= static_cast<std::uint32_t>(sorted.num_pairs);
  for (std::uint32_t left = __ballot_sync(kAllLanes, is_padding); left != 0; left &= left - 1) {
    char* const to = static_cast<char*>(args.rows) + (first + __ffs(left) - 1) * args.rows_stride;
    for (std::uint32_t column = threadIdx.x; column < args.words_per_row;
         column += kMoePermuteThreads) {
      reinterpret_cast<Word*>(to)[column] = Word{};
    }
  }
}

/// Copies a part of a token's row to all rows of its pairs.
template <typename Word>
__device__ __forceinline__ void copy_part(const MoePermuteKernelArgs& args, std::uint32_t token,
                                          std::uint32_t part) {
  constexpr int kWords = kMoePermuteWordsPerThread;
  constexpr int kSlotsAtOnce = 8;
  const std::uint32_t begin = part * args.words_per_part;
  const std::uint32_t end = min(begin + args.words_per_part, args.words_per_row);
  const char* const from = static_cast<const char*>(args.x) + token * args.x_stride;
  const std::int32_t* const rows = args.inverse + std::int64_t{token} * args.top_k;
  const auto num_rows = static_cast<std::uint32_t>(rows_in_use(args.sorted));
  Word words[kWords];
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const std::uint32_t column = begin + i * kMoePermuteThreads + threadIdx.x;
    if (column < end) words[i] = __ldg(reinterpret_cast<const Word*>(from) + column);
  }
  for (int slot = 0; slot < args.top_k; slot += kSlotsAtOnce) {
    std::int32_t row[kSlotsAtOnce];
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) row[i] = slot + i < args.top_k ? rows[slot + i] : -1;
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce; ++i) {
      // Not the row of a pair that does not count.
      if (static_cast<std::uint32_t>(row[i]) >= num_rows) continue;
      auto* const to =
          reinterpret_cast<Word*>(static_cast<char*>(args.rows) + row[i] * args.rows_stride);
#pragma unroll
      for (int j = 0; j < kWords; ++j) {
        const std::uint32_t column = begin + j * kMoePermuteThreads + threadIdx.x;
        if (column < end) __stcs(to + column, words[j]);  // faster by up to 7%
      }
    }
  }
}

template <typename Word>
__global__ void __launch_bounds__(kMoePermuteThreads)
    moe_permute(const __grid_constant__ MoePermuteKernelArgs args) {
  pdl_launch_dependents();
  std::uint32_t cta = blockIdx.x;
  pdl_wait();
  if (cta < args.num_offset_ctas) return write_offsets(args);
  cta -= args.num_offset_ctas;
  if (cta < args.num_padding_ctas) return clear_padding<Word>(args, cta);
  cta -= args.num_padding_ctas;
  copy_part<Word>(args, cta / args.parts_per_row, cta % args.parts_per_row);
}

}  // namespace

const void* moe_permute_kernel(int word_bytes) {
  switch (word_bytes) {
    case 1:
      return reinterpret_cast<const void*>(&moe_permute<unsigned char>);
    case 2:
      return reinterpret_cast<const void*>(&moe_permute<unsigned short>);
    case 4:
      return reinterpret_cast<const void*>(&moe_permute<unsigned int>);
    default:
      return reinterpret_cast<const void*>(&moe_permute<uint4>);
  }
}

}  // namespace tessera::cuda
