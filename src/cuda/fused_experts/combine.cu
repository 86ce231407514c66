// The sum of the weighted rows of each token, in ascending order of slots. A CTA sums a part of one
// token's rows, and each of its threads one word of that part. The lanes of a warp read the ids of
// the token's slots for each other.
#include "cuda/fused_experts/kernels.hpp"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/integers.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {
namespace {

template <typename T>
struct alignas(kCombineBytes) Word {
  T elements[kCombineElements];
};

__device__ __forceinline__ bool counts(const CombineArgs& args, std::uint32_t token, int slot) {
  if (slot >= args.top_k) return false;
  const std::int64_t expert =
      integer_at(args.topk_ids, args.ids_are_64_bit, token * args.topk_ids_stride + slot);
  return expert >= 0 && expert < args.num_experts;
}

/// Rows of one word each that a thread has loaded before it uses the first, and their slots.
template <int kRows>
struct Rows {
  uint4 words[kRows];
  unsigned slots[kRows];  ///< one bit each, or none

  /// Loads the rows of the first kRows slots of `slots_left`, or as many as there are, and returns
  /// the rest.
  template <typename T>
  __device__ __forceinline__ unsigned load(const T* column, std::int64_t row_stride,
                                           unsigned slots_left, bool has_column) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      slots[i] = slots_left & (0U - slots_left);
      slots_left ^= slots[i];
      words[i] = make_uint4(0, 0, 0, 0);
      if (slots[i] == 0 || !has_column) continue;
      const int slot = 31 - __clz(static_cast<int>(slots[i]));
      words[i] = *reinterpret_cast<const uint4*>(column + slot * row_stride);
    }
    return slots_left;
  }

  /// Adds those whose slots count.
  template <typename T>
  __device__ __forceinline__ void add(unsigned counting, float (&sums)[kCombineElements]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if ((counting & slots[i]) == 0) continue;
      const auto& word = reinterpret_cast<const Word<T>&>(words[i]);
#pragma unroll
      for (int j = 0; j < kCombineElements; ++j) sums[j] += to_float(word.elements[j]);
    }
  }
};

template <typename T>
__device__ __forceinline__ void write(const CombineArgs& args, T* to, int column,
                                      const float (&sums)[kCombineElements]) {
  Word<T> word;
#pragma unroll
  for (int i = 0; i < kCombineElements; ++i) word.elements[i] = rounded<T>(sums[i]);
  if (args.has_vectors) {
    *reinterpret_cast<Word<T>*>(to) = word;
    return;
  }
#pragma unroll
  for (int i = 0; i < kCombineElements; ++i) {
    if (column + i < args.hidden_size) to[i] = word.elements[i];
  }
}

/// CTAs that share a multiprocessor's registers: enough to hide the latency of what a thread loads.
constexpr int min_ctas(int rows_at_once) {
  if (rows_at_once <= 2) return 16;
  return rows_at_once <= 4 ? 12 : 8;
}

template <typename T, int kRows>
__global__ void __launch_bounds__(kCombineThreads, min_ctas(kRows))
    combine(const __grid_constant__ CombineArgs args) {
  pdl_launch_dependents();
  constexpr int kSlotsAtOnce = 32;  // one for each lane
  const std::uint32_t token = blockIdx.x / args.ctas_per_token;
  const int column = static_cast<int>(
      (blockIdx.x % args.ctas_per_token * kCombineThreads + threadIdx.x) * kCombineElements);
  const bool has_column = column < args.hidden_size;
  const T* from = static_cast<const T*>(args.rows) +
                  std::int64_t{token} * args.top_k * args.row_stride + column;
  pdl_wait();
  float sums[kCombineElements] = {};
  for (int first = 0; first < args.top_k; first += kSlotsAtOnce) {
    const bool is_counting = counts(args, token, first + static_cast<int>(threadIdx.x) % 32);
    const int num_slots = min(args.top_k - first, kSlotsAtOnce);
    // Where nearly all slots count, rows are loaded without waiting for their ids.
    unsigned left = args.loads_all ? kAllLanes >> (kSlotsAtOnce - num_slots)
                                   : __ballot_sync(kAllLanes, is_counting);
    while (left != 0) {
      Rows<kRows> rows;
      left = rows.load(from, args.row_stride, left, has_column);
      rows.template add<T>(__ballot_sync(kAllLanes, is_counting), sums);
    }
    from += kSlotsAtOnce * args.row_stride;
  }
  if (!has_column) return;
  write(args, static_cast<T*>(args.output) + token * args.output_stride + column, column, sums);
}

template <typename T>
const void* kernel_of(int rows_at_once) {
  switch (rows_at_once) {
    case 2:
      return reinterpret_cast<const void*>(&combine<T, 2>);
    case 4:
      return reinterpret_cast<const void*>(&combine<T, 4>);
    default:
      return reinterpret_cast<const void*>(&combine<T, 8>);
  }
}

}  // namespace

const void* combine_kernel(bool is_bfloat16, int rows_at_once) {
  return is_bfloat16 ? kernel_of<__nv_bfloat16>(rows_at_once) : kernel_of<__half>(rows_at_once);
}

}  // namespace tessera::cuda
