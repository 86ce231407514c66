// The weighted sum over the slots of each token, in ascending order. A CTA sums a part of one
// token's rows, and each of its threads one word of that part.
#include "cuda/fused_experts/kernels.hpp"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/pdl.cuh"

namespace tessera::cuda {
namespace {

/// Slots whose router weights a CTA reads at once.
constexpr int kSlotsAtOnce = kCombineThreads;
/// Rows that a thread loads before it uses the first.
constexpr int kRowsAtOnce = 8;

__device__ __forceinline__ bool counts(const CombineArgs& args, std::uint32_t token, int slot) {
  const std::int64_t index = token * args.topk_ids_stride + slot;
  const std::int64_t expert = args.ids_are_64_bit
                                  ? static_cast<const std::int64_t*>(args.topk_ids)[index]
                                  : static_cast<const std::int32_t*>(args.topk_ids)[index];
  return expert >= 0 && expert < args.num_experts;
}

__device__ __forceinline__ float weight_of(const CombineArgs& args, std::uint32_t token, int slot) {
  if (args.topk_weights == nullptr) return 1;
  return float_at(args.topk_weights, args.topk_weights_dtype,
                  token * args.topk_weights_stride + slot);
}

/// The slots of the token that count, of kSlotsAtOnce from `first` on: their number, and each
/// slot's row and weight in ascending order.
struct CountingSlots {
  int rows[kSlotsAtOnce];
  float weights[kSlotsAtOnce];
  int count_of_warp[kSlotsAtOnce / 32];

  __device__ __forceinline__ int find(const CombineArgs& args, std::uint32_t token, int first) {
    const int slot = first + static_cast<int>(threadIdx.x);
    const bool does_count = slot < args.top_k && counts(args, token, slot);
    const unsigned ballot = __ballot_sync(~0U, does_count);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (lane == 0) count_of_warp[warp] = __popc(ballot);
    __syncthreads();
    int before = 0;
    int all = 0;
#pragma unroll
    for (int i = 0; i < kSlotsAtOnce / 32; ++i) {
      before += i < warp ? count_of_warp[i] : 0;
      all += count_of_warp[i];
    }
    if (does_count) {
      const int place = before + __popc(ballot & ((1U << lane) - 1));
      rows[place] = slot;
      weights[place] = weight_of(args, token, slot);
    }
    __syncthreads();
    return all;
  }
};

/// Adds the rows of kRows slots to the sums. All are loaded before the first is used.
template <int kRows>
__device__ __forceinline__ void add_rows(const CombineArgs& args, const float* column,
                                         const CountingSlots& slots, int first,
                                         float (&sums)[kCombineElements]) {
  float4 words[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    words[i] = *reinterpret_cast<const float4*>(column + slots.rows[first + i] * args.row_stride);
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float weight = slots.weights[first + i];
    sums[0] = __fmaf_rn(weight, words[i].x, sums[0]);
    sums[1] = __fmaf_rn(weight, words[i].y, sums[1]);
    sums[2] = __fmaf_rn(weight, words[i].z, sums[2]);
    sums[3] = __fmaf_rn(weight, words[i].w, sums[3]);
  }
}

template <int kMost>
__device__ __forceinline__ void add_last_rows(const CombineArgs& args, const float* column,
                                              const CountingSlots& slots, int first, int left,
                                              float (&sums)[kCombineElements]) {
  if (left == kMost) {
    add_rows<kMost>(args, column, slots, first, sums);
  } else if constexpr (kMost > 1) {
    add_last_rows<kMost - 1>(args, column, slots, first, left, sums);
  }
}

template <typename T>
__device__ __forceinline__ void write(const CombineArgs& args, T* to, int column,
                                      const float (&sums)[kCombineElements]) {
  struct alignas(kCombineElements * sizeof(T)) Word {
    T elements[kCombineElements];
  } word;
#pragma unroll
  for (int i = 0; i < kCombineElements; ++i) word.elements[i] = rounded<T>(sums[i]);
  if (args.has_vectors) {
    *reinterpret_cast<Word*>(to) = word;
    return;
  }
#pragma unroll
  for (int i = 0; i < kCombineElements; ++i) {
    if (column + i < args.hidden_size) to[i] = word.elements[i];
  }
}

template <typename T>
__global__ void __launch_bounds__(kCombineThreads)
    combine(const __grid_constant__ CombineArgs args) {
  pdl_launch_dependents();
  __shared__ CountingSlots slots;
  const std::uint32_t token = blockIdx.x / args.ctas_per_token;
  const int column = static_cast<int>(
      (blockIdx.x % args.ctas_per_token * kCombineThreads + threadIdx.x) * kCombineElements);
  const bool has_column = column < args.hidden_size;
  const std::int64_t first_row = std::int64_t{token} * args.top_k;
  const float* const from = args.rows + first_row * args.row_stride + column;
  pdl_wait();
  float sums[kCombineElements] = {};
  for (int first = 0; first < args.top_k; first += kSlotsAtOnce) {
    const int count = slots.find(args, token, first);
    if (has_column) {
      int done = 0;
      for (; count - done >= kRowsAtOnce; done += kRowsAtOnce) {
        add_rows<kRowsAtOnce>(args, from, slots, done, sums);
      }
      add_last_rows<kRowsAtOnce - 1>(args, from, slots, done, count - done, sums);
    }
    __syncthreads();
  }
  if (!has_column) return;
  write(args, static_cast<T*>(args.output) + token * args.output_stride + column, column, sums);
}

}  // namespace

const void* combine_kernel(bool is_bfloat16) {
  return is_bfloat16 ? reinterpret_cast<const void*>(&combine<__nv_bfloat16>)
                     : reinterpret_cast<const void*>(&combine<__half>);
}

}  // namespace tessera::cuda
