// The kernel that exchanges operands, for weights of 16 bits; and what clears its counters.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/fused_experts/swap_ab_layer.cuh"

namespace tessera::cuda {
namespace {

__global__ void __launch_bounds__(kSwapAbClearThreads)
    swap_ab_clear(const __grid_constant__ SwapAbCounters args) {
  start_layer();
  clear(args);
}

}  // namespace

const void* swap_ab_clear_kernel() { return reinterpret_cast<const void*>(&swap_ab_clear); }

const void* swap_ab_kernel(bool is_bfloat16, std::size_t tiling) {
  constexpr std::size_t kTilings = kSwapAbTilings.size();
  return is_bfloat16 ? swap_ab_kernel_of<Scaling::kNone, __nv_bfloat16, kTilings>(tiling)
                     : swap_ab_kernel_of<Scaling::kNone, __half, kTilings>(tiling);
}

}  // namespace tessera::cuda
