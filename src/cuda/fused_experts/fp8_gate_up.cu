// The gate-up product of numbers in float8_e4m3fn.
#include <cuda_fp8.h>

#include "cuda/fused_experts/product.cuh"

namespace tessera::cuda {
namespace {

template <typename T>
const void* kernel_of(WeightAccess access, std::size_t tile) {
  constexpr bool kIsGateUp = true;
  using Operand = __nv_fp8_e4m3;
  if (access == WeightAccess::kRows) {
    return product_kernel_of<Operand, T, WeightAccess::kRows, kIsGateUp, kNumFp8Tiles>(tile);
  }
  return product_kernel_of<Operand, T, WeightAccess::kElements, kIsGateUp, kNumFp8Tiles>(tile);
}

}  // namespace

const void* fp8_gate_up_kernel(bool is_bfloat16, WeightAccess access, std::size_t tile) {
  return is_bfloat16 ? kernel_of<__nv_bfloat16>(access, tile) : kernel_of<__half>(access, tile);
}

}  // namespace tessera::cuda
