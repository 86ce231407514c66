// What the launcher of fused_experts and its kernel for few pairs per expert share. It needs
// compute capability 9.0a.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "cuda/fused_experts/kernels.hpp"
#include "cuda/fused_experts/policy.hpp"
#include "cuda/parts/layout.hpp"

namespace tessera::cuda {

/// Rows of the weights that one wgmma multiplies. A tile has two such operands, or one in a gate-up
/// product of few tiles. With a gate, rows of gate and of up take turns in runs.
inline constexpr int kSwapAbOperandRows = kSwapAbHalfRows;
inline constexpr int kSwapAbOperands = kSwapAbRows / kSwapAbOperandRows;
inline constexpr int kSwapAbRun = 8;

/// Two groups multiply in turns, each with a warpgroup for each operand. Then come a warp that
/// takes tiles, one that copies weights, and three that gather rows.
inline constexpr int kSwapAbGroups = 2;
inline constexpr int kSwapAbGroupThreads = kSwapAbOperands * 128;
inline constexpr int kSwapAbThreads = kSwapAbGroups * kSwapAbGroupThreads + 5 * 32;

/// The stages have room for 128 KiB of weights. A stage holds several steps of kStageDepth elements
/// of each row of a tile, in 128-byte lines: of the weights, then of the pairs. More stages of one
/// step each make calls with few pairs 1 to 3% slower, as each stage has barriers of its own.
inline constexpr std::uint32_t kSwapAbOperandBytes = kSwapAbOperandRows * kStageDepth * 2;
inline constexpr std::uint32_t kSwapAbStages = 4;
inline constexpr std::uint32_t kSwapAbWeightBytes = (std::uint32_t{128} << 10) / kSwapAbStages;
inline constexpr std::uint32_t kSwapAbRowBytes = std::uint32_t{8} << 10;
inline constexpr std::uint32_t kSwapAbStageBytes = kSwapAbWeightBytes + kSwapAbRowBytes;

/// A stage of a tile of so many operands.
template <int kOperands>
struct SwapAbSteps {
  static constexpr std::uint32_t kWeightBytes = kOperands * kSwapAbOperandBytes;  ///< of a step
  static constexpr int kNumber = kSwapAbWeightBytes / kWeightBytes;
  static constexpr int kDepth = kNumber * kStageDepth;
  static constexpr std::uint32_t kRowBytes = kSwapAbRowBytes / kNumber;  ///< of a step
  static constexpr int kMaxPairs = kRowBytes / (kStageDepth * 2);
};
static_assert(SwapAbSteps<kSwapAbOperands>::kMaxPairs == kSwapAbPairs);
static_assert(SwapAbSteps<1>::kMaxPairs == kSwapAbHalfPairs);

/// Floats between the sums of a pair and the next: 4 more than there are keep them apart in the
/// banks.
inline constexpr int kSwapAbSumStride = kSwapAbRows + 4;

/// A CTA takes neighbouring tiles at once until their weights have this size, if there are so many.
inline constexpr std::int64_t kSwapAbTakeBytes = std::int64_t{128} << 10;

/// A block: pairs of one expert, which a tile multiplies.
struct SwapAbBlock {
  std::uint16_t expert;
  std::uint16_t first;  ///< in the list of pairs by expert
  std::uint16_t num_pairs;
};
inline constexpr std::size_t kSwapAbMaxBlocks =
    (kSwapAbMaxPairs + kSwapAbMaxExperts * (kSwapAbPairs - 1)) / kSwapAbPairs;

/// How the dynamic shared memory is divided.
struct SwapAbLayout {
  static constexpr Section<unsigned char> kStages{0,
                                                  std::size_t{kSwapAbStages} * kSwapAbStageBytes};
  static constexpr Section<float> kSums{
      kStages.end, std::size_t{kSwapAbGroups} * kSwapAbPairs* kSwapAbSumStride};
  static constexpr Section<float> kWeightsOfPairs{kSums.end,
                                                  std::size_t{kSwapAbGroups} * kSwapAbPairs};
  static constexpr Section<std::uint64_t> kBarriers{kWeightsOfPairs.end,
                                                    2 * kSwapAbStages + 2 + kSwapAbGroups};
  static constexpr Section<std::uint32_t> kTaken{kBarriers.end, 1};
  static constexpr Section<std::uint32_t> kNumBlocks{kTaken.end, 1};
  static constexpr Section<std::int32_t> kWarpSums{kNumBlocks.end, 32};
  static constexpr Section<std::int32_t> kCounts{kWarpSums.end, kSwapAbMaxExperts};
  static constexpr Section<SwapAbBlock> kBlocks{kCounts.end, kSwapAbMaxBlocks};
  static constexpr Section<std::uint16_t> kPairs{kBlocks.end, kSwapAbMaxPairs};
};
inline constexpr std::size_t kSwapAbSharedBytes = SwapAbLayout::kPairs.end;
static_assert(kSwapAbSharedBytes + 1024 <= std::size_t{227} * 1024);

struct SwapAbProduct {
  /// [E, runs, 1 or gate and up, kSwapAbRun, depth]: a box is a tile of kStageDepth.
  CUtensorMap weights;
  ProductArgs args;  ///< num_columns: tiles. Nothing writes sorted_pairs, block_experts, num_slots
  std::int32_t operands;  ///< of a tile: kSwapAbOperands, or 1
  std::int32_t run;       ///< tiles that are taken at once
  std::uint32_t takes_per_block;
};

struct SwapAbArgs {
  SwapAbProduct gate_up;
  SwapAbProduct down;
  CombineArgs combine;              ///< its ids are contiguous: element i belongs to pair i
  std::uint32_t num_combine_parts;  ///< of which a group takes one for each of its warpgroups
  // Counters, 0 at first.
  std::uint32_t* taken;
  std::uint32_t* down_done;     ///< tiles of the down product
  std::uint32_t* gate_up_done;  ///< [block] tiles of the gate-up product
};

struct SwapAbCounters {
  std::uint32_t* counters;
  std::uint32_t length;
};

/// Sets the counters to 0, in a CTA of kSwapAbClearThreads threads. The layer's kernel has to
/// follow it in the stream.
inline constexpr int kSwapAbClearThreads = 256;

/// A persistent kernel of kSwapAbThreads threads, a CTA for each multiprocessor. They are null if
/// this build has no code for compute capability 9.0a.
#if TESSERA_HAS_90A
const void* swap_ab_clear_kernel();
const void* swap_ab_kernel(bool is_bfloat16, int gate_up_operands);
#else
inline const void* swap_ab_clear_kernel() { return nullptr; }
inline const void* swap_ab_kernel(bool, int) { return nullptr; }
#endif

}  // namespace tessera::cuda
