// The down product on compute capability 9.0a.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/fused_experts/wgmma_product.cuh"

namespace tessera::cuda {

const void* wgmma_down_kernel(bool is_bfloat16, Scaling scaling) {
  return is_bfloat16 ? wgmma_product_kernel<false, __nv_bfloat16>(scaling)
                     : wgmma_product_kernel<false, __half>(scaling);
}

}  // namespace tessera::cuda
