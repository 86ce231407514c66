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
    const auto& word = reinterpret_cast<const Word<T>&>(words[i]);
#pragma unroll
    for (int j = 0; j < kCombineElements; ++j) sums[j] += to_float(word.elements[j]);
  }
  return counting;
}

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

/// CTAs that share a multiprocessor's registers. Few loads of a thread hide their latency only if
/// all threads that fit are there: 2048, or 1536 on devices such as 8.6 and 12.0.
constexpr int min_ctas(int rows_at_once) {
  if (rows_at_once > kFewSlots) return 0;  // left to the compiler
#if __CUDA_ARCH__ == 800 || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200)
  return 2048 / kCombineThreads;
#else
  return 1536 / kCombineThreads;
#endif
}

template <typename T, int kRowsAtOnce>
__global__ void __launch_bounds__(kCombineThreads, min_ctas(kRowsAtOnce))
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
    const int slot = first + static_cast<int>(threadIdx.x) % 32;
    unsigned counting = __ballot_sync(kAllLanes, counts(args, token, slot));
    while (has_column && counting != 0) {
      counting = add_rows<kRowsAtOnce>(from, args.row_stride, counting, sums);
    }
    from += kSlotsAtOnce * args.row_stride;
  }
  if (!has_column) return;
  write(args, static_cast<T*>(args.output) + token * args.output_stride + column, column, sums);
}

template <typename T>
const void* kernel_of(bool has_few_slots) {
  return has_few_slots ? reinterpret_cast<const void*>(&combine<T, kFewSlots>)
                       : reinterpret_cast<const void*>(&combine<T, 8>);
}

}  // namespace

const void* combine_kernel(bool is_bfloat16, bool has_few_slots) {
  return is_bfloat16 ? kernel_of<__nv_bfloat16>(has_few_slots) : kernel_of<__half>(has_few_slots);
}

}  // namespace tessera::cuda
