// The gate-up product.
#include "cuda/fused_experts/product.cuh"

namespace tessera::cuda {

const void* gate_up_kernel(bool is_bfloat16, WeightAccess access, std::size_t tile) {
  constexpr bool kIsGateUp = true;
  return is_bfloat16 ? product_kernel_of<kIsGateUp, __nv_bfloat16>(access, tile)
                     : product_kernel_of<kIsGateUp, __half>(access, tile);
}

}  // namespace tessera::cuda
