// What the launcher of fused_experts and its kernels for compute capability 9.0a share.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/fused_experts/kernels.hpp"
#include "cuda/fused_experts/policy.hpp"

namespace tessera::cuda {

/// A tile of a product: a block of pairs, whose halves two warpgroups multiply, and some rows of
/// the weights. A third warpgroup copies.
inline constexpr int kWgmmaStages = 4;
inline constexpr int kWgmmaThreads = 384;
/// The rows of a box of weights: a stage has two. With a gate they are gate and up.
inline constexpr int kWgmmaBoxRows = kWgmmaColumns / 2;
/// Pairs of a warpgroup, which are also a box of the intermediate.
inline constexpr int kWgmmaHalf = kWgmmaPairs / 2;

/// The gate-up product writes its output by slot of a block, not by pair.
template <typename ProductType>
struct WgmmaArgs {
  using Product = ProductType;

  /// [E, 1 or gate and up, outputs, depth], in boxes of kWgmmaBoxRows lines.
  CUtensorMap weights;
  /// Of the down product: [slot, depth], in boxes of kWgmmaHalf lines.
  CUtensorMap intermediate;
  std::int32_t* tiles_taken;  ///< -1 at first
  Product product;
};

/// With scales of blocks the gate-up product quantises its output, with scales of rows it writes
/// float32. The scales of blocks that the down product reads are those that gate-up has written.
struct WgmmaFp8Product : Fp8ProductArgs {
  float* output_scales;  ///< [group of 128 outputs, output_scale_stride], by slot
  std::int64_t output_scale_stride;
  bool use_ue8m0;
};

template <Scaling kScaling>
using WgmmaArgsFor =
    WgmmaArgs<std::conditional_t<kScaling == Scaling::kNone, ProductArgs, WgmmaFp8Product>>;

/// A stage holds a line of each row of the tile.
inline constexpr std::uint32_t kWgmmaRowBytes = kWgmmaPairs * kLineBytes;
inline constexpr std::uint32_t kWgmmaStageBytes = kWgmmaRowBytes + kWgmmaColumns * kLineBytes;
/// The scales of blocks of a stage: of its pairs, then of its boxes of weights, and padding.
inline constexpr std::uint32_t kWgmmaScaleBytes = kWgmmaPairs * sizeof(float) + kWordBytes;
/// A warp's results on their way out: 16 rows of a line, a word of padding apart.
inline constexpr std::uint32_t kWgmmaResultStride = kLineBytes + kWordBytes;
inline constexpr std::uint32_t kWgmmaWarpBytes = 16 * kWgmmaResultStride;
inline constexpr std::uint32_t kWgmmaConsumerWarps = 8;

/// The tile of a CTA: one or two halves of kWgmmaHalf pairs of an expert, and the first output.
struct WgmmaPlace {
  std::int32_t first_slot;  ///< -1: no tile is left
  std::int32_t expert;
  std::int32_t first_output;
  std::int32_t num_halves;  ///< that hold pairs
};

/// Lane l, and lane l + 16, know row l of the sixteen of the warp.
struct WgmmaRow {
  std::int32_t pair;  ///< num_pairs or more: none
  float weight;       ///< the router's, or 1
  float scale;        ///< of whole rows: of the row that is multiplied
};

/// Two places, and a barrier for each place and each stage to be full, and to be empty.
inline constexpr int kWgmmaPlaces = 2;
inline constexpr int kWgmmaBarriers = 2 * (kWgmmaStages + kWgmmaPlaces);

/// Dynamic shared memory: stages, their scales, results of the warps, places, barriers.
inline constexpr std::size_t kWgmmaSharedBytes =
    kWgmmaStages * (kWgmmaStageBytes + kWgmmaScaleBytes) + kWgmmaConsumerWarps * kWgmmaWarpBytes +
    kWgmmaPlaces * sizeof(WgmmaPlace) + kWgmmaBarriers * sizeof(std::uint64_t);
static_assert(kWgmmaSharedBytes <= std::size_t{227} * 1024);

/// Persistent kernels of kWgmmaThreads threads, a CTA for each multiprocessor, for WgmmaArgs of
/// ProductArgs, or with scales of WgmmaFp8Product. `is_bfloat16`: biases and the rows of the down
/// product are. Null if this build has no code for compute capability 9.0a.
#if TESSERA_HAS_90A
const void* wgmma_gate_up_kernel(bool is_bfloat16, Scaling scaling);
const void* wgmma_down_kernel(bool is_bfloat16, Scaling scaling);
#else
inline const void* wgmma_gate_up_kernel(bool, Scaling) { return nullptr; }
inline const void* wgmma_down_kernel(bool, Scaling) { return nullptr; }
#endif

}  // namespace tessera::cuda
