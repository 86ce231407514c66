// The gate-up product on compute capability 9.0a.
#include "cuda/fused_experts/wgmma_product.cuh"

namespace tessera::cuda {
namespace {

template <typename T>
const void* kernel(int ctas_per_cluster) {
  constexpr bool kIsGateUp = true;
  return ctas_per_cluster == 1 ? reinterpret_cast<const void*>(&wgmma_product<T, kIsGateUp, 1>)
                               : reinterpret_cast<const void*>(&wgmma_product<T, kIsGateUp, 2>);
}

}  // namespace

const void* wgmma_gate_up_kernel(bool is_bfloat16, int ctas_per_cluster) {
  return is_bfloat16 ? kernel<__nv_bfloat16>(ctas_per_cluster) : kernel<__half>(ctas_per_cluster);
}

}  // namespace tessera::cuda
