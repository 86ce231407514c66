// The gate-up product.
#include "cuda/fused_experts/product.cuh"

namespace tessera::cuda {
namespace {

template <typename T>
const void* kernel_of(WeightAccess access, std::size_t tile) {
  constexpr bool kIsGateUp = true;
  constexpr std::size_t kTiles = kProductTiles.size();
  switch (access) {
    case WeightAccess::kRows:
      return product_kernel_of<T, T, WeightAccess::kRows, kIsGateUp, kTiles>(tile);
    case WeightAccess::kColumns:
      return product_kernel_of<T, T, WeightAccess::kColumns, kIsGateUp, kTiles>(tile);
    default:
      return product_kernel_of<T, T, WeightAccess::kElements, kIsGateUp, kTiles>(tile);
  }
}

}  // namespace

const void* gate_up_kernel(bool is_bfloat16, WeightAccess access, std::size_t tile) {
  return is_bfloat16 ? kernel_of<__nv_bfloat16>(access, tile) : kernel_of<__half>(access, tile);
}

}  // namespace tessera::cuda
