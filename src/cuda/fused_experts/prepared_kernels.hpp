// The kernels of fused_experts with what prepares them for a device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/fused_experts/kernels.hpp"
#include "cuda/launch.hpp"

namespace tessera::cuda {

enum class ProductKind : std::uint8_t { kGateUp, kDown };

/// The kernel of a tile of kProductTiles.
Kernel prepared_product_kernel(ProductKind kind, bool bfloat16, WeightAccess access,
                               std::size_t tile);
/// The same for numbers in float8_e4m3fn.
Kernel prepared_fp8_product_kernel(ProductKind kind, bool bfloat16, WeightAccess access,
                                   std::size_t tile);
Kernel prepared_wgmma_kernel(ProductKind kind, bool bfloat16, Scaling scaling);
Kernel prepared_swap_ab_clear_kernel();
Kernel prepared_swap_ab_fp8_start_kernel(bool bfloat16);
Kernel prepared_swap_ab_kernel(bool bfloat16, Scaling scaling, std::size_t tiling);
Kernel prepared_combine_kernel(bool bfloat16, bool has_few_slots);
Kernel prepared_pairs_kernel();

/// Whether the device can run the kernels for 9.0a, and this build has them.
bool has_wgmma(int device_id);

}  // namespace tessera::cuda
