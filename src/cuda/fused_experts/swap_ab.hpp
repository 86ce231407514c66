// What the launcher of fused_experts and its kernel for few pairs per expert share. It needs
// compute capability 9.0a.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "cuda/fused_experts/kernels.hpp"
#include "cuda/fused_experts/policy.hpp"
#include "cuda/parts/layout.hpp"

namespace tessera::cuda {

/// Rows of the weights that one wgmma multiplies. A tile has one such operand, of which it may use
/// half, two or four. With a gate, rows of gate and of up take turns in runs.
inline constexpr int kSwapAbOperandRows = 64;
inline constexpr int kSwapAbRun = 8;

/// Four warpgroups multiply. Then come a warp that takes tiles, one that copies weights, and three
/// that gather rows.
inline constexpr int kSwapAbWarpgroups = 4;
inline constexpr int kSwapAbThreads = kSwapAbWarpgroups * 128 + 5 * 32;

/// The weights of a stage: one or several steps of a line of each row of a tile. More stages of one
/// step each make calls with few pairs 1 to 3% slower, as each stage has barriers of its own.
inline constexpr std::uint32_t kSwapAbWeightBytes = std::uint32_t{32} << 10;

/// A stage of a tile of so many rows.
template <int kRows>
struct SwapAbSteps {
  static constexpr std::uint32_t kWeightBytes = kRows * kLineBytes;  ///< of a step
  static constexpr int kNumber = kSwapAbWeightBytes / kWeightBytes;
};

/// Of 227 KiB, the most that a CTA can have.
inline constexpr std::size_t kSwapAbMaxSharedBytes = std::size_t{226} * 1024;

/// A CTA takes neighbouring tiles at once until their weights have this size, if there are so many
/// for each CTA.
inline constexpr std::int64_t kSwapAbTakeBytes = std::int64_t{128} << 10;

/// A block: pairs of one expert, which a tile multiplies.
struct SwapAbBlock {
  std::uint16_t expert;
  std::uint16_t first;  ///< in the list of pairs by expert
  std::uint16_t num_pairs;
  std::uint8_t number;  ///< among the blocks of its expert
  std::uint8_t count;   ///< of these blocks
};
static_assert((kSwapAbMaxPairs - 1) / kSwapAbPairs + 1 <= 255, "an expert has too many blocks");

/// What the kernel of a tiling has in shared memory, and how that is divided.
template <std::size_t kTiling>
struct SwapAbLayout {
  static constexpr SwapAbTiling kTiles = kSwapAbTilings[kTiling];
  static constexpr int kPairs = kTiles.pairs;
  static constexpr int kGateUpRows = kTiles.gate_up_rows;
  static constexpr int kDownRows = kTiles.down_rows;
  /// A group multiplies a tile, with a warpgroup for each operand. Where there are two groups, they
  /// take turns.
  static constexpr int kOperands =
      std::max(2, std::max(kGateUpRows, kDownRows) / kSwapAbOperandRows);
  static constexpr int kGroups = kSwapAbWarpgroups / kOperands;
  static constexpr int kGroupThreads = kOperands * 128;
  /// Kernels with smaller blocks run calls that have no more pairs than a block.
  static constexpr bool kHasManyPairs = kPairs >= kSwapAbPairs;
  static constexpr int kPairsAtOnce = kTiles.pairs_at_once;
  static constexpr std::size_t kMaxPairs = kHasManyPairs ? kSwapAbMaxPairs : kPairs;
  static constexpr std::size_t kMaxExperts = kHasManyPairs ? kSwapAbMaxExperts : 0;
  static constexpr std::size_t kMaxBlocks =
      kHasManyPairs ? (kMaxPairs + kMaxExperts * (kPairs - 1)) / kPairs : kPairs;

  /// After the weights of a stage come the rows of the pairs, for as many steps.
  static constexpr std::uint32_t kStepRowBytes = kPairs * kLineBytes;
  static constexpr int kMaxSteps =
      std::max(SwapAbSteps<kGateUpRows>::kNumber, SwapAbSteps<kDownRows>::kNumber);
  static constexpr std::uint32_t kStageBytes = kSwapAbWeightBytes + kMaxSteps * kStepRowBytes;
  /// Scales of a step in float8_e4m3fn: one for each pair, and of blocks one for the rows of gate
  /// and one for the rows of up, and padding.
  static constexpr int kStepScales = kPairs + 4;
  static constexpr int kStageScales = kMaxSteps * kStepScales;
  /// Floats between the sums of a pair and the next: 4 more than there are keep them apart in the
  /// banks.
  static constexpr int kSumStride = std::max(kGateUpRows, kDownRows) + 4;
  static constexpr std::size_t kOtherBytes =
      std::size_t{kGroups} * (kPairsAtOnce * kSumStride + kPairs) * sizeof(float) +
      kMaxExperts * sizeof(std::int32_t) + kMaxBlocks * sizeof(SwapAbBlock) +
      kMaxPairs * sizeof(std::uint16_t) + 512;  // barriers, and what sorting needs
  static constexpr std::uint32_t kStages = std::min<std::size_t>(
      6, (kSwapAbMaxSharedBytes - kOtherBytes) / (kStageBytes + kStageScales * sizeof(float)));

  static constexpr Section<unsigned char> kRing{0, std::size_t{kStages} * kStageBytes};
  static constexpr Section<float> kScales{kRing.end, std::size_t{kStages} * kStageScales};
  static constexpr Section<float> kSums{kScales.end,
                                        std::size_t{kGroups} * kPairsAtOnce* kSumStride};
  static constexpr Section<float> kWeightsOfPairs{kSums.end, std::size_t{kGroups} * kPairs};
  static constexpr Section<std::uint64_t> kBarriers{kWeightsOfPairs.end, 2 * kStages + 2 + kGroups};
  static constexpr Section<std::uint32_t> kMessages{kBarriers.end, kGroups};
  static constexpr Section<std::uint32_t> kTaken{kMessages.end, 1};
  static constexpr Section<std::uint32_t> kNumBlocks{kTaken.end, 1};
  static constexpr Section<std::int32_t> kWarpSums{kNumBlocks.end, 32};
  static constexpr Section<std::int32_t> kCounts{kWarpSums.end, kMaxExperts};
  static constexpr Section<SwapAbBlock> kBlocks{kCounts.end, kMaxBlocks};
  static constexpr Section<std::uint16_t> kListOfPairs{kBlocks.end, kMaxPairs};
  static constexpr std::size_t kBytes = kListOfPairs.end;
  static_assert(kBytes <= kSwapAbMaxSharedBytes);
};

/// The dynamic shared memory of the kernel of a tiling.
constexpr std::size_t swap_ab_shared_bytes(std::size_t tiling) {
  return []<std::size_t... kTilings>(std::size_t index, std::index_sequence<kTilings...>) {
    return std::array{SwapAbLayout<kTilings>::kBytes...}[index];
  }
  (tiling, std::make_index_sequence<kSwapAbTilings.size()>{});
}

struct SwapAbProduct {
  /// [E, runs, 1 or gate and up, kSwapAbRun, depth]: a box is a tile of a line's depth.
  CUtensorMap weights;
  /// num_columns: tiles. Nothing writes sorted_pairs, block_experts, num_slots. Scales are there
  /// with weights in float8_e4m3fn alone.
  Fp8ProductArgs args;
  std::int32_t tile_rows;  ///< of the weights
  std::int32_t run;        ///< tiles that are taken at once
  std::uint32_t takes_per_block;
  /// The weights of experts that have at most so many blocks leave the L2 cache first.
  std::int32_t max_blocks_evicted_first;
};

/// Outputs of each pair of a block that are quantised at once where rows have scales.
inline constexpr std::int32_t kSwapAbQuantisedOutputs = 512;

/// The intermediate in float8_e4m3fn. The gate-up product writes float32. A group is quantised once
/// it is complete: of 128 outputs by whoever writes the last of them; of all outputs, with scales
/// of rows, in parts by all groups of threads before their first tile of the down product.
struct SwapAbQuantised {
  std::uint8_t* values;  ///< [pair, F]: rows of the down product
  float* scales;         ///< [pair, group]
  const float* scale;    ///< null: scales are computed; only for scales of rows
  bool use_ue8m0;
  std::uint32_t* tiles_done;  ///< of the gate-up product: [block, group] 0 at first
  // With scales of blocks alone:
  std::uint32_t num_groups;
  std::uint32_t tiles_per_group;
  // With scales of rows alone:
  std::uint32_t parts_per_block;
  std::uint32_t* parts_taken;  ///< 0 at first
  /// [pair] The largest magnitude of its row, as bits; 0 at first. Null if `scale` is given.
  std::uint32_t* largest;
};

struct SwapAbArgs {
  SwapAbProduct gate_up;
  SwapAbProduct down;
  SwapAbQuantised quantised;        ///< with weights in float8_e4m3fn alone
  bool prefetches_weights;          ///< into the L2 cache, each CTA, while x is quantised
  CombineArgs combine;              ///< its ids are contiguous: element i belongs to pair i
  std::uint32_t num_combine_parts;  ///< of which a group takes one for each of its warpgroups
  // Counters, 0 at first.
  std::uint32_t* taken;
  std::uint32_t* down_done;     ///< tiles of the down product
  std::uint32_t* gate_up_done;  ///< [block] parts of the gate-up product
  std::uint32_t gate_up_parts;  ///< of a block: tiles, or groups or parts that are quantised
};

struct SwapAbCounters {
  std::uint32_t* counters;
  std::uint32_t length;
};

/// Rows of x that are quantised in groups of 128 while the counters are cleared. They start at
/// multiples of 16 bytes. Strides are in elements.
struct SwapAbFp8Start {
  SwapAbCounters counters;
  const void* x;
  std::uint8_t* values;
  float* scales;  ///< [row, group]
  bool use_ue8m0;
  std::int32_t num_rows;
  std::int32_t hidden_size;
  std::int32_t num_groups;
  std::int64_t x_stride;
  std::int64_t values_stride;
};

/// Threads of a CTA that sets the counters to 0. The layer's kernel has to follow in the stream.
inline constexpr int kSwapAbClearThreads = 256;

/// Threads of SwapAbFp8Start that quantise, eight for each group.
constexpr std::int64_t num_quantizing_threads(const SwapAbFp8Start& start) {
  return std::int64_t{8} * start.num_rows * start.num_groups;
}

/// Persistent kernels of kSwapAbThreads threads and swap_ab_shared_bytes() of dynamic shared
/// memory, a CTA for each multiprocessor; the second one for weights in float8_e4m3fn, with scales.
/// `is_bfloat16`: x, biases and the output are. They are null if this build has no code for compute
/// capability 9.0a.
#if TESSERA_HAS_90A
const void* swap_ab_clear_kernel();
const void* swap_ab_kernel(bool is_bfloat16, std::size_t tiling);
const void* swap_ab_fp8_kernel(bool is_bfloat16, Scaling scaling, std::size_t tiling);
const void* swap_ab_fp8_start_kernel(bool is_bfloat16);
#else
inline const void* swap_ab_clear_kernel() { return nullptr; }
inline const void* swap_ab_kernel(bool, std::size_t) { return nullptr; }
inline const void* swap_ab_fp8_kernel(bool, Scaling, std::size_t) { return nullptr; }
inline const void* swap_ab_fp8_start_kernel(bool) { return nullptr; }
#endif

}  // namespace tessera::cuda
