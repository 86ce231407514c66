// The down product on compute capability 9.0a.
#include "cuda/fused_experts/wgmma_product.cuh"

namespace tessera::cuda {

const void* wgmma_down_kernel(bool is_bfloat16) {
  constexpr bool kIsGateUp = false;
  return is_bfloat16 ? reinterpret_cast<const void*>(&wgmma_product<__nv_bfloat16, kIsGateUp>)
                     : reinterpret_cast<const void*>(&wgmma_product<__half, kIsGateUp>);
}

}  // namespace tessera::cuda
