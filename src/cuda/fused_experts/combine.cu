// The weighted sum over the slots of each token, in ascending order. A CTA sums a part of one
// token's rows, and each of its threads one word of that part. The lanes of a warp read the ids and
// weights of the token's slots for each other.
#include "cuda/fused_experts/kernels.hpp"
#include "cuda/parts/floats.cuh"
#include "cuda/parts/integers.cuh"
#include "cuda/parts/pdl.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {
namespace {

/// Rows that a thread loads before it uses the first.
constexpr int kRowsAtOnce = 8;

/// Of one slot of the token, which each lane has for itself.
struct Slot {
  bool counts;
  float weight;
};

__device__ __forceinline__ Slot slot_of(const CombineArgs& args, std::uint32_t token, int slot) {
  if (slot >= args.top_k) return {false, 0};
  const std::int64_t index = token * args.topk_ids_stride + slot;
  const std::int64_t expert = integer_at(args.topk_ids, args.ids_are_64_bit, index);
  const float weight = args.topk_weights == nullptr
                           ? 1.0F
                           : float_at(args.topk_weights, args.topk_weights_dtype,
                                      token * args.topk_weights_stride + slot);
  return {expert >= 0 && expert < args.num_experts, weight};
}

/// Adds the rows of the first kRowsAtOnce slots of `counting`, or as many as there are, and returns
/// the rest. All rows are loaded before the first is used. `weight` is of the lane's own slot.
__device__ __forceinline__ unsigned add_rows(const float* column, std::int64_t row_stride,
                                             bool has_column, float weight, unsigned counting,
                                             float (&sums)[kCombineElements]) {
  float4 words[kRowsAtOnce];
  float weights[kRowsAtOnce];
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) {
    const bool is_row = counting != 0;
    const int slot = is_row ? __ffs(static_cast<int>(counting)) - 1 : 0;
    counting &= counting - 1;
    const float of_slot = __shfl_sync(kAllLanes, weight, slot);
    // Adding 0 * 0 changes nothing: no sum is -0.
    weights[i] = is_row ? of_slot : 0;
    words[i] = is_row && has_column ? *reinterpret_cast<const float4*>(column + slot * row_stride)
                                    : make_float4(0, 0, 0, 0);
  }
#pragma unroll
  for (int i = 0; i < kRowsAtOnce; ++i) {
    sums[0] = __fmaf_rn(weights[i], words[i].x, sums[0]);
    sums[1] = __fmaf_rn(weights[i], words[i].y, sums[1]);
    sums[2] = __fmaf_rn(weights[i], words[i].z, sums[2]);
    sums[3] = __fmaf_rn(weights[i], words[i].w, sums[3]);
  }
  return counting;
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

/// The launch bounds allow 64 registers, so that all loads of a round are in flight.
template <typename T>
__global__ void __launch_bounds__(kCombineThreads, 8)
    combine(const __grid_constant__ CombineArgs args) {
  pdl_launch_dependents();
  constexpr int kSlotsAtOnce = 32;  // one for each lane
  const std::uint32_t token = blockIdx.x / args.ctas_per_token;
  const int column = static_cast<int>(
      (blockIdx.x % args.ctas_per_token * kCombineThreads + threadIdx.x) * kCombineElements);
  const bool has_column = column < args.hidden_size;
  const float* from = args.rows + std::int64_t{token} * args.top_k * args.row_stride + column;
  pdl_wait();
  float sums[kCombineElements] = {};
  for (int first = 0; first < args.top_k; first += kSlotsAtOnce) {
    const Slot slot = slot_of(args, token, first + static_cast<int>(threadIdx.x) % 32);
    unsigned counting = __ballot_sync(kAllLanes, slot.counts);
    while (counting != 0) {
      counting = add_rows(from, args.row_stride, has_column, slot.weight, counting, sums);
    }
    from += kSlotsAtOnce * args.row_stride;
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
