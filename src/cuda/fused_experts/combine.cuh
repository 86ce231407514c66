// The sum of the weighted rows of each token, in ascending order of slots. A CTA sums a part of one
// token's rows, and each of its threads one word of that part. The lanes of a warp read the ids of
// the token's slots for each other.
#pragma once

#include <cstdint>

#include "cuda/fused_experts/kernels.hpp"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/integers.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {

template <typename T>
struct alignas(kCombineBytes) CombineWord {
  T elements[kCombineElements];
};

__device__ __forceinline__ bool slot_counts(const CombineArgs& args, std::uint32_t token,
                                            int slot) {
  if (slot >= args.top_k) return false;
  const std::int64_t expert =
      integer_at(args.topk_ids, args.ids_are_64_bit, token * args.topk_ids_stride + slot);
  return expert >= 0 && expert < args.num_experts;
}

/// Adds the rows of the first kRowsAtOnce slots of `counting`, or as many as there are, and returns
/// the rest. All rows are loaded before the first is used.
template <int kRowsAtOnce, typename T>
__device__ __forceinline__ unsigned add_rows(const T* column, std::int64_t row_stride,
                                             unsigned counting, float (&sums)[kCombineElements]) {
  uint4 words[kRowsAtOnce];
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) {
    // Zeros change nothing: no sum is -0.
    words[i] = make_uint4(0, 0, 0, 0);
    if (counting == 0) continue;
    const int slot = __ffs(static_cast<int>(counting)) - 1;
    counting &= counting - 1;
    words[i] = *reinterpret_cast<const uint4*>(column + slot * row_stride);
  }
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) {
    const auto& word = reinterpret_cast<const CombineWord<T>&>(words[i]);
#pragma unroll
    for (int j = 0; j < kCombineElements; ++j) sums[j] += to_float(word.elements[j]);
  }
  return counting;
}

template <typename T>
__device__ __forceinline__ void write_combined(const CombineArgs& args, T* to, int column,
                                               const float (&sums)[kCombineElements]) {
  CombineWord<T> word;
#pragma unroll
  for (int i = 0; i < kCombineElements; ++i) word.elements[i] = rounded<T>(sums[i]);
  if (args.has_vectors) {
    *reinterpret_cast<CombineWord<T>*>(to) = word;
    return;
  }
#pragma unroll
  for (int i = 0; i < kCombineElements; ++i) {
    if (column + i < args.hidden_size) to[i] = word.elements[i];
  }
}

/// The sums of part `cta` of all parts of all tokens, by kCombineThreads threads of whole warps, of
/// which this is `thread`. Calls wait_for_rows() once it has read the first ids.
template <typename T, int kRowsAtOnce, typename WaitForRows>
__device__ __forceinline__ void combine_part(const CombineArgs& args, std::uint32_t cta,
                                             std::uint32_t thread,
                                             const WaitForRows& wait_for_rows) {
  constexpr int kSlotsAtOnce = 32;  // one for each lane
  const std::uint32_t token = cta / args.ctas_per_token;
  const int column =
      static_cast<int>((cta % args.ctas_per_token * kCombineThreads + thread) * kCombineElements);
  const bool has_column = column < args.hidden_size;
  const T* from = static_cast<const T*>(args.rows) +
                  std::int64_t{token} * args.top_k * args.row_stride + column;
  float sums[kCombineElements] = {};
  for (int first = 0; first < args.top_k; first += kSlotsAtOnce) {
    const int slot = first + static_cast<int>(thread) % 32;
    unsigned counting = __ballot_sync(kAllLanes, slot_counts(args, token, slot));
    if (first == 0) wait_for_rows();
    while (has_column && counting != 0) {
      counting = add_rows<kRowsAtOnce>(from, args.row_stride, counting, sums);
    }
    from += kSlotsAtOnce * args.row_stride;
  }
  if (!has_column) return;
  write_combined(args, static_cast<T*>(args.output) + token * args.output_stride + column, column,
                 sums);
}

}  // namespace tessera::cuda
