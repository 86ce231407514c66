// The kernel that exchanges operands, for weights in float8_e4m3fn.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "cuda/fused_experts/fp8_word.cuh"
#include "cuda/fused_experts/swap_ab_layer.cuh"

namespace tessera::cuda {
namespace {

static_assert(Fp8GroupWord::kThreads == 8);  // num_quantizing_threads

/// The first CTA clears the counters, the others quantise rows of x.
template <typename T>
__global__ void __launch_bounds__(kSwapAbClearThreads)
    swap_ab_fp8_start(const __grid_constant__ SwapAbFp8Start args) {
  start_layer();
  if (blockIdx.x == 0) {
    clear(args.counters);
    return;
  }
  const auto thread = static_cast<int>((blockIdx.x - 1) * kSwapAbClearThreads + threadIdx.x);
  using Word = Fp8GroupWord;
  const int row = thread / Word::kThreads / args.num_groups;
  const int group = thread / Word::kThreads % args.num_groups;
  const int first = (group * Word::kThreads + thread % Word::kThreads) * Fp8Word<T>::kElements;
  const bool is_within = row < args.num_rows && first < args.hidden_size;
  const T* const source = static_cast<const T*>(args.x) + row * args.x_stride + first;
  const Word word(Fp8Word<T>(source, is_within), args.use_ue8m0);
  if (!is_within) return;
  *reinterpret_cast<uint4*>(args.values + row * args.values_stride + first) = word.bytes;
  if (thread % Word::kThreads == 0) args.scales[row * args.num_groups + group] = word.scale;
}

}  // namespace

const void* swap_ab_fp8_start_kernel(bool is_bfloat16) {
  return is_bfloat16 ? reinterpret_cast<const void*>(&swap_ab_fp8_start<__nv_bfloat16>)
                     : reinterpret_cast<const void*>(&swap_ab_fp8_start<__half>);
}

const void* swap_ab_fp8_kernel(bool is_bfloat16, Scaling scaling, std::size_t tiling) {
  const auto kernel = [&]<Scaling kScaling>() {
    constexpr std::size_t kTilings = num_swap_ab_tilings(kScaling);
    return is_bfloat16 ? swap_ab_kernel_of<kScaling, __nv_bfloat16, kTilings>(tiling)
                       : swap_ab_kernel_of<kScaling, __half, kTilings>(tiling);
  };
  return scaling == Scaling::kBlocks ? kernel.operator()<Scaling::kBlocks>()
                                     : kernel.operator()<Scaling::kRows>();
}

}  // namespace tessera::cuda
