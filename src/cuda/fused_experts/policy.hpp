// Which kernels multiply a problem, in how many chunks, and the workspace of a chunk. Pure
// functions in host code, so that they can be tested and explained without a GPU.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/fused_experts_problem.hpp"
#include "cuda/fused_experts/kernels.hpp"

namespace tessera::cuda {

/// What a chunk of tokens keeps for each of its pairs takes at most this many bytes, unless a
/// single token needs more.
inline constexpr std::int64_t kMaxChunkBytes = std::int64_t{2} << 30;

/// The most pairs of a chunk, which keeps slots and CTAs within int32 for every tile.
inline constexpr std::int64_t kMaxChunkPairs = std::int64_t{1} << 22;

/// How the two products find their weights.
struct ProductAccesses {
  WeightAccess gate_up;
  WeightAccess down;

  bool has_elements() const {
    return gate_up == WeightAccess::kElements || down == WeightAccess::kElements;
  }
};

ProductAccesses accesses_of(const core::FusedExpertsProblem& problem);

/// How the products are computed: by mma.sync, with the tile of this index in kProductTiles; or on
/// compute capability 9.0 by the kernels for 9.0a, or by the one that exchanges the operands, sorts
/// the pairs itself and does all other steps, too.
using ProductStrategy = std::size_t;
inline constexpr ProductStrategy kWgmma = kProductTiles.size();
inline constexpr ProductStrategy kSwapAb = kWgmma + 1;
inline constexpr std::size_t kNumProductStrategies = kSwapAb + 1;

constexpr bool is_for_90a(ProductStrategy strategy) { return strategy >= kWgmma; }

/// The tile of the kernels for 9.0a.
inline constexpr int kWgmmaPairs = 128;
inline constexpr int kWgmmaColumns = 256;

/// The tiles of a kernel that exchanges operands.
struct SwapAbTiling {
  int pairs;         ///< of a block; calls of more pairs have blocks of kSwapAbPairs or more
  int gate_up_rows;  ///< of the weights
  int down_rows;
  int pairs_at_once;  ///< whose sums are written
};
/// With few pairs, tiles of fewer rows keep more multiprocessors busy; with many, wider tiles
/// gather fewer rows, and fewer sums at once leave room for five stages.
inline constexpr std::array<SwapAbTiling, 5> kSwapAbTilings{{
    {32, 128, 128, 32},
    {16, 64, 128, 16},
    {8, 64, 64, 8},
    {48, 256, 256, 16},
    {8, 32, 128, 8},  // for products that have few rows, or short ones
}};
inline constexpr int kSwapAbPairs = kSwapAbTilings.front().pairs;
inline constexpr std::size_t kSwapAbOf16PairsTiling = 1;
inline constexpr std::size_t kSwapAbOf8PairsTiling = 2;
inline constexpr std::size_t kSwapAbOf48PairsTiling = 3;
inline constexpr std::size_t kSwapAbShortTiling = 4;
/// The first of them. In float8_e4m3fn blocks of 48 pairs are slower than wgmma's, and whoever
/// writes the last tile of a group of outputs quantises all of it: there are no kernels with the
/// shortest tiles.
constexpr std::size_t num_swap_ab_tilings(Scaling scaling) {
  return scaling == Scaling::kNone ? kSwapAbTilings.size() : kSwapAbOf48PairsTiling;
}
/// It sorts at most so many pairs, and pairs of so many experts.
inline constexpr int kSwapAbMaxPairs = 2048;
inline constexpr int kSwapAbMaxExperts = 512;

/// Pairs of a block: each expert has whole blocks. With exchanged operands blocks may be larger, so
/// that there are fewer.
constexpr int pairs_per_block(ProductStrategy strategy) {
  if (strategy == kSwapAb) return kSwapAbPairs;
  return strategy == kWgmma ? kWgmmaPairs : kProductTiles[strategy].pairs;
}

/// The strategy that the policy picks, by the mean number of pairs of an expert. `has_wgmma`: the
/// device has compute capability 9.0, and this build has code for 9.0a.
ProductStrategy choose_strategy(const core::FusedExpertsProblem& problem, bool has_wgmma);

/// Why a strategy cannot multiply a problem; null if it can.
const char* limitation(ProductStrategy strategy, const core::FusedExpertsProblem& problem);

/// Elements between the rows of pairs: a whole number of words of 16 bytes.
constexpr std::int64_t padded_row(std::int64_t elements) {
  return (elements + kWordElements - 1) / kWordElements * kWordElements;
}

/// The same of numbers in float8_e4m3fn.
constexpr std::int64_t padded_fp8_row(std::int64_t elements) {
  return (elements + kWordBytes - 1) / kWordBytes * kWordBytes;
}

inline Scaling scaling_of(const core::FusedExpertsProblem& problem) {
  if (!problem.has_fp8_weights()) return Scaling::kNone;
  return problem.w13.scales.kind == core::WeightScales::kPerBlock ? Scaling::kBlocks
                                                                  : Scaling::kRows;
}

/// Scales of a row of x or of the intermediate that the call computes, beside weights in
/// float8_e4m3fn.
inline std::int64_t scales_per_row(const core::FusedExpertsProblem& problem,
                                   std::int64_t elements) {
  return scaling_of(problem) == Scaling::kBlocks ? core::num_scale_blocks(elements) : 1;
}

std::int64_t tokens_per_chunk(const core::FusedExpertsProblem& problem);

/// How the workspace of a chunk is divided, in bytes from an address that is a multiple of
/// kWorkspaceAlign.
struct FusedExpertsWorkspace {
  static constexpr std::size_t kWorkspaceAlign = 256;

  std::size_t pair_experts;   ///< int32 [pair], where ids are not used as they are
  std::size_t sorted_pairs;   ///< int32 [slot of a block]
  std::size_t block_experts;  ///< int32 [block_experts_length]
  std::size_t num_slots;      ///< int32
  std::size_t intermediate;   ///< [intermediate_rows, padded F] of the type of x, or float32
  std::size_t rows;           ///< weighted [pair, padded H] of the type of x
  // With weights in float8_e4m3fn: rows of x and of the intermediate, and float32 scales of each.
  std::size_t fp8_x;
  std::size_t fp8_x_scales;
  std::size_t fp8_intermediate;
  std::size_t fp8_intermediate_scales;
  std::size_t alignment;  ///< what align_block_size needs
  std::int64_t max_slots;
  std::int64_t max_blocks;
  std::int64_t block_experts_length;
  std::int64_t intermediate_rows;  ///< one per pair; with wgmma one per slot

  /// Wgmma's products count their tiles in this many entries of block_experts after the last block:
  /// align_block_size sets them to -1. With exchanged operands all entries are counters, of which
  /// the first are these: that kernel sorts the pairs itself.
  static constexpr std::int64_t kTileCounters = 2;

  FusedExpertsWorkspace(const core::FusedExpertsProblem& problem, std::int64_t num_tokens,
                        ProductStrategy strategy);
  /// Of all, with `alignment_bytes` for align_block_size, at any address.
  std::size_t bytes(std::size_t alignment_bytes) const {
    return alignment + alignment_bytes + kWorkspaceAlign;
  }
};

/// Whether align_block_size, and what else needs the experts of pairs, can read the ids as they
/// are.
bool has_plain_ids(const core::FusedExpertsProblem& problem, ProductStrategy strategy);

/// The index of a problem's tiling with exchanged operands.
std::size_t swap_ab_tiling(const core::FusedExpertsProblem& problem);

/// Whether the first weights are fetched into the L2 cache while x is quantised, with exchanged
/// operands.
bool prefetches_weights(const core::FusedExpertsProblem& problem);

/// With exchanged operands, the weights of experts that have at most so many blocks leave the L2
/// cache first; 0: no weights do. `row_bytes` and `tile_bytes` are of the weights of a product.
int max_blocks_evicted_first(const core::FusedExpertsProblem& problem, std::int64_t row_bytes,
                             std::int64_t tile_bytes);

/// "64x128 tiles, 2 chunks of 8192 tokens"
std::string describe_plan(ProductStrategy strategy, const core::FusedExpertsProblem& problem);

}  // namespace tessera::cuda
