// What the launcher of fused_experts and its kernels for compute capability 9.0a share.
#pragma once

#include <cuda.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "cuda/fused_experts/kernels.hpp"
#include "cuda/fused_experts/policy.hpp"

namespace tessera::cuda {

/// Pairs of a warpgroup that multiplies, which are also a box of the intermediate.
inline constexpr int kWgmmaPart = 64;

/// The gate-up product writes its output by slot of a block, not by pair.
template <typename ProductType>
struct WgmmaArgs {
  using Product = ProductType;

  /// [E, 1 or gate and up, outputs, depth], in boxes of WgmmaLayout::kBoxRows lines.
  CUtensorMap weights;
  /// Of the down product: [slot, depth], in boxes of kWgmmaPart lines.
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

/// The tile of a CTA: parts of kWgmmaPart pairs of an expert, and the first output.
struct WgmmaPlace {
  std::int32_t first_slot;  ///< -1: no tile is left
  std::int32_t expert;
  std::int32_t first_output;
  std::int32_t num_parts;  ///< that hold pairs
};

/// Lane l, and lane l + 16, know row l of the sixteen of the warp.
struct WgmmaRow {
  std::int32_t pair;  ///< num_pairs or more: none
  float weight;       ///< the router's, or 1
  float scale;        ///< of whole rows: of the row that is multiplied
};

inline constexpr int kWgmmaPlaces = 2;

/// A warp's results on their way out: 16 rows of a line, a word of padding apart.
inline constexpr std::uint32_t kWgmmaResultStride = kLineBytes + kWordBytes;
inline constexpr std::uint32_t kWgmmaWarpBytes = 16 * kWgmmaResultStride;

/// A CTA: a warpgroup that copies, and one for each part of a block that multiplies. Its dynamic
/// shared memory holds stages, their scales, results of the warps, places and barriers.
template <std::size_t kTiling>
struct WgmmaLayout {
  static constexpr int kPairs = kWgmmaTilings[kTiling].pairs;
  static constexpr int kColumns = kWgmmaTilings[kTiling].columns;
  /// The rows of a box of weights: a stage has two. With a gate they are gate and up.
  static constexpr int kBoxRows = kColumns / 2;
  static constexpr int kParts = kPairs / kWgmmaPart;
  static constexpr int kThreads = 128 * (1 + kParts);
  static constexpr std::uint32_t kConsumerWarps = 4 * kParts;
  /// A stage holds a line of each row of the tile.
  static constexpr std::uint32_t kRowBytes = kPairs * kLineBytes;
  static constexpr std::uint32_t kStageBytes = kRowBytes + kColumns * kLineBytes;
  /// The scales of blocks of a stage: of its pairs, then of its boxes of weights, and padding.
  static constexpr std::uint32_t kScaleBytes = kPairs * sizeof(float) + kWordBytes;
  /// Of a stage or a place: it is full, or it is empty.
  static constexpr std::size_t kBarrierPairBytes = 2 * sizeof(std::uint64_t);
  static constexpr std::size_t kOtherBytes =
      kConsumerWarps * kWgmmaWarpBytes + kWgmmaPlaces * (sizeof(WgmmaPlace) + kBarrierPairBytes);
  /// As many as there is room for.
  static constexpr std::uint32_t kStages =
      (std::size_t{227} * 1024 - kOtherBytes) / (kStageBytes + kScaleBytes + kBarrierPairBytes);
  static constexpr std::size_t kSharedBytes =
      kStages * (kStageBytes + kScaleBytes + kBarrierPairBytes) + kOtherBytes;
  static_assert(kStages >= 4, "fewer do not keep enough copies on their way");
};

/// How the kernel of a tiling is launched.
struct WgmmaLaunch {
  int columns;
  int box_rows;
  int threads;
  std::size_t shared_bytes;
};
constexpr WgmmaLaunch wgmma_launch(std::size_t tiling) {
  return [tiling]<std::size_t... kTilings>(std::index_sequence<kTilings...>) {
    return std::array{WgmmaLaunch{WgmmaLayout<kTilings>::kColumns, WgmmaLayout<kTilings>::kBoxRows,
                                  WgmmaLayout<kTilings>::kThreads,
                                  WgmmaLayout<kTilings>::kSharedBytes}...}[tiling];
  }
  (std::make_index_sequence<kWgmmaTilings.size()>{});
}

/// Persistent kernels, a CTA for each multiprocessor, for WgmmaArgs of ProductArgs, or with scales
/// of WgmmaFp8Product, of a tiling of kWgmmaTilings. `is_bfloat16`: biases and the rows of the down
/// product are. Null if this build has no code for compute capability 9.0a.
#if TESSERA_HAS_90A
const void* wgmma_gate_up_kernel(bool is_bfloat16, Scaling scaling, std::size_t tiling);
const void* wgmma_down_kernel(bool is_bfloat16, Scaling scaling, std::size_t tiling);
#else
inline const void* wgmma_gate_up_kernel(bool, Scaling, std::size_t) { return nullptr; }
inline const void* wgmma_down_kernel(bool, Scaling, std::size_t) { return nullptr; }
#endif

}  // namespace tessera::cuda
