// What the launcher of moe_permute and its kernels share, and how a launch is planned. No CUDA
// headers, so that it can be tested without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/moe_permute_problem.hpp"

namespace tessera::cuda {

/// The pairs in the order of their experts, as align_block_size writes them.
struct SortedPairs {
  const std::int32_t* pairs;          ///< [capacity], num_pairs or more: padding
  const std::int32_t* block_experts;  ///< [max_blocks]
  const std::int32_t* num_rows;       ///< [1], rows in use
  std::int32_t num_pairs;
  std::int32_t capacity;
  std::int32_t max_blocks;
  std::int32_t block_size;
};

/// The arguments of the kernel, for words of any size. Strides are in bytes.
struct MoePermuteKernelArgs {
  SortedPairs sorted;
  std::int32_t num_experts;
  std::int32_t* expert_offsets;
  const std::int32_t* inverse;
  const void* x;
  void* rows;
  std::int32_t top_k;
  std::uint32_t words_per_row;
  std::uint32_t words_per_part;
  std::uint32_t parts_per_row;
  std::uint32_t num_offset_ctas;
  std::uint32_t num_padding_ctas;
  std::int64_t x_stride;
  std::int64_t rows_stride;
};

/// A kernel for CTAs of kMoePermuteThreads threads: the first num_offset_ctas write the first rows
/// of the experts, a thread per block and one more; the next num_padding_ctas clear the padding
/// among kMoePermutePaddingRows rows each; and each other one copies a part of a token's row. A
/// word is 16 bytes, or a single element.
const void* moe_permute_kernel(int word_bytes);
inline constexpr int kMoePermuteThreads = 128;
inline constexpr int kMoePermuteVectorBytes = 16;
inline constexpr int kMoePermuteWordsPerThread = 2;  // at most: more are slower by up to 8%
inline constexpr int kMoePermutePaddingRows = 32;

/// Fewer tokens are cut into more parts, which keep more multiprocessors busy.
inline constexpr std::int64_t kMoePermuteManyTokens = 512;

struct MoePermutePlan {
  int word_bytes;
  std::uint32_t words_per_row;
  std::uint32_t words_per_part;
  std::uint32_t parts_per_row;
  std::int64_t num_offset_ctas;
  std::int64_t num_padding_ctas;
  std::int64_t num_ctas;
};

/// Plans vectors if every row starts at a multiple of their size and consists of whole vectors.
inline MoePermutePlan plan_moe_permute(const core::MoePermuteProblem& p) {
  const auto divided = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  // A query may leave the type open.
  const std::int64_t element_bytes = std::max(1, p.dtype.bits / 8);
  const auto addresses =
      reinterpret_cast<std::uintptr_t>(p.x) | reinterpret_cast<std::uintptr_t>(p.rows);
  const std::int64_t steps = p.x_stride | p.rows_stride | p.hidden_size;
  const bool has_vectors = addresses % kMoePermuteVectorBytes == 0 &&
                           steps % (kMoePermuteVectorBytes / element_bytes) == 0;
  MoePermutePlan plan{};
  const std::int64_t max_blocks = divided(p.capacity, p.block_size);
  plan.num_offset_ctas = max_blocks / kMoePermuteThreads + 1;
  plan.word_bytes = has_vectors ? kMoePermuteVectorBytes : static_cast<int>(element_bytes);
  plan.words_per_row = static_cast<std::uint32_t>(p.row_bytes() / plan.word_bytes);
  const std::int64_t most = p.num_tokens < kMoePermuteManyTokens
                                ? kMoePermuteThreads
                                : kMoePermuteThreads * kMoePermuteWordsPerThread;
  plan.parts_per_row = static_cast<std::uint32_t>(divided(plan.words_per_row, most));
  plan.num_ctas = plan.num_offset_ctas;
  if (plan.parts_per_row == 0) return plan;
  // Parts of about the same length, each of whole lines of 128 bytes but for the last.
  constexpr std::int64_t kWordsPerLine = 128 / kMoePermuteVectorBytes;
  const std::int64_t share = divided(plan.words_per_row, plan.parts_per_row);
  plan.words_per_part = static_cast<std::uint32_t>(divided(share, kWordsPerLine) * kWordsPerLine);
  if (p.block_size > 1) plan.num_padding_ctas = divided(p.capacity, kMoePermutePaddingRows);
  plan.num_ctas += plan.num_padding_ctas + p.num_tokens * plan.parts_per_row;
  return plan;
}

}  // namespace tessera::cuda
