#include "cuda/fused_experts/prepared_kernels.hpp"

#include <string>

#include "core/errors.hpp"
#include "cuda/device.hpp"
#include "cuda/fused_experts/launch.hpp"
#include "cuda/fused_experts/swap_ab.hpp"
#include "cuda/fused_experts/wgmma.hpp"

namespace tessera::cuda {

Kernel prepared_product_kernel(ProductKind kind, bool bfloat16, WeightAccess access,
                               std::size_t tile) {
  static PreparedContexts prepared[2][2][kNumWeightAccesses][kProductTiles.size()];
  const auto find = kind == ProductKind::kGateUp ? gate_up_kernel : down_kernel;
  return {.function = find(bfloat16, access, tile),
          .needs_shared_memory = true,
          .static_shared_bytes = kProductStaticSharedBytes,
          .prepared =
              &prepared[static_cast<int>(kind)][bfloat16 ? 1 : 0][static_cast<int>(access)][tile]};
}

Kernel prepared_fp8_product_kernel(ProductKind kind, bool bfloat16, WeightAccess access,
                                   std::size_t tile) {
  static PreparedContexts prepared[2][2][kNumWeightAccesses][kNumFp8Tiles];
  const auto find = kind == ProductKind::kGateUp ? fp8_gate_up_kernel : fp8_down_kernel;
  return {.function = find(bfloat16, access, tile),
          .needs_shared_memory = true,
          .static_shared_bytes = kProductStaticSharedBytes,
          .prepared =
              &prepared[static_cast<int>(kind)][bfloat16 ? 1 : 0][static_cast<int>(access)][tile]};
}

Kernel prepared_wgmma_kernel(ProductKind kind, bool bfloat16, Scaling scaling) {
  static PreparedContexts prepared[2][2][kNumScalings];
  const auto find = kind == ProductKind::kGateUp ? wgmma_gate_up_kernel : wgmma_down_kernel;
  return {
      .function = find(bfloat16, scaling),
      .needs_shared_memory = true,
      .prepared = &prepared[static_cast<int>(kind)][bfloat16 ? 1 : 0][static_cast<int>(scaling)]};
}

Kernel prepared_swap_ab_kernel(bool bfloat16, Scaling scaling, std::size_t tiling) {
  static PreparedContexts prepared[2][kNumScalings][kSwapAbTilings.size()];
  return {.function = scaling == Scaling::kNone ? swap_ab_kernel(bfloat16, tiling)
                                                : swap_ab_fp8_kernel(bfloat16, scaling, tiling),
          .needs_shared_memory = true,
          .prepared = &prepared[bfloat16 ? 1 : 0][static_cast<int>(scaling)][tiling]};
}

Kernel prepared_swap_ab_clear_kernel() {
  static PreparedContexts prepared;
  return {.function = swap_ab_clear_kernel(), .prepared = &prepared};
}

Kernel prepared_swap_ab_fp8_start_kernel(bool bfloat16) {
  static PreparedContexts prepared[2];
  return {.function = swap_ab_fp8_start_kernel(bfloat16), .prepared = &prepared[bfloat16 ? 1 : 0]};
}

bool has_wgmma(int device_id) {
  return properties_of(device_id).compute_capability == 90 &&
         wgmma_gate_up_kernel(true, Scaling::kNone) != nullptr;
}

Kernel prepared_combine_kernel(bool bfloat16, bool has_few_slots) {
  static PreparedContexts prepared[2][2];
  return {.function = combine_kernel(bfloat16, has_few_slots),
          .prepared = &prepared[bfloat16 ? 1 : 0][has_few_slots ? 1 : 0]};
}

Kernel prepared_pairs_kernel() {
  static PreparedContexts prepared;
  return {.function = pairs_kernel(), .prepared = &prepared};
}

Status load_fused_experts_kernels(std::string_view op, int device_id,
                                  const CurrentContext& context) {
  const auto load = [&](const Kernel& kernel, const char* name) -> Status {
    if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
      return core::refuse(StatusCode::kRuntimeError, op, "kernel", std::string(name) + " to load",
                          text_of(error));
    }
    return {};
  };
  if (Status s = load(prepared_pairs_kernel(), "the experts of pairs"); !s.ok()) return s;
  if (has_wgmma(device_id)) {
    const Kernel kernel = prepared_swap_ab_clear_kernel();
    if (Status s = load(kernel, "the counters of tiles"); !s.ok()) return s;
  }
  for (const bool bfloat16 : {false, true}) {
    for (const bool has_few_slots : {false, true}) {
      const Kernel kernel = prepared_combine_kernel(bfloat16, has_few_slots);
      if (Status s = load(kernel, "the sum over slots"); !s.ok()) return s;
    }
    if (has_wgmma(device_id)) {
      const Kernel kernel = prepared_swap_ab_fp8_start_kernel(bfloat16);
      if (Status s = load(kernel, "the quantisation of x"); !s.ok()) return s;
    }
    for (const Scaling scaling : {Scaling::kNone, Scaling::kBlocks, Scaling::kRows}) {
      if (!has_wgmma(device_id)) break;
      for (std::size_t tiling = 0; tiling < num_swap_ab_tilings(scaling); ++tiling) {
        const Kernel kernel = prepared_swap_ab_kernel(bfloat16, scaling, tiling);
        if (Status s = load(kernel, "the layer"); !s.ok()) return s;
      }
      for (const ProductKind kind : {ProductKind::kGateUp, ProductKind::kDown}) {
        const Kernel kernel = prepared_wgmma_kernel(kind, bfloat16, scaling);
        if (Status s = load(kernel, "a product"); !s.ok()) return s;
      }
    }
    for (const auto access :
         {WeightAccess::kRows, WeightAccess::kColumns, WeightAccess::kElements}) {
      for (std::size_t tile = 0; tile < kProductTiles.size(); ++tile) {
        if (access == WeightAccess::kElements && tile != kElementsTile) continue;
        for (const ProductKind kind : {ProductKind::kGateUp, ProductKind::kDown}) {
          const Kernel kernel = prepared_product_kernel(kind, bfloat16, access, tile);
          if (Status s = load(kernel, "a product"); !s.ok()) return s;
          if (access == WeightAccess::kColumns || tile >= kNumFp8Tiles) continue;
          const Kernel fp8_kernel = prepared_fp8_product_kernel(kind, bfloat16, access, tile);
          if (Status s = load(fp8_kernel, "a product in fp8"); !s.ok()) return s;
        }
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
