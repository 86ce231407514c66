// The gate-up product on compute capability 9.0a.
#include <cuda_fp8.h>

#include "cuda/fused_experts/wgmma_product.cuh"

namespace tessera::cuda {

const void* wgmma_gate_up_kernel(bool is_bfloat16, bool is_fp8) {
  const auto kernel = [&]<typename T>() {
    return is_fp8 ? reinterpret_cast<const void*>(&wgmma_product<__nv_fp8_e4m3, T, true>)
                  : reinterpret_cast<const void*>(&wgmma_product<T, T, true>);
  };
  return is_bfloat16 ? kernel.operator()<__nv_bfloat16>() : kernel.operator()<__half>();
}

}  // namespace tessera::cuda
