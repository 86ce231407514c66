// Which tiles multiply a problem, in how many chunks, and the workspace of a chunk. Pure functions
// in host code, so that they can be tested and explained without a GPU.
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

/// The tile of kProductTiles that the policy picks: by the mean number of pairs of an expert.
std::size_t choose_tile(const core::FusedExpertsProblem& problem);

/// Why a tile cannot multiply a problem; null if it can.
const char* limitation(std::size_t tile, const core::FusedExpertsProblem& problem);

/// Elements between the rows of pairs: a whole number of words of 16 bytes.
constexpr std::int64_t padded_row(std::int64_t elements) {
  return (elements + kWordElements - 1) / kWordElements * kWordElements;
}

std::int64_t tokens_per_chunk(const core::FusedExpertsProblem& problem);

/// How the workspace of a chunk is divided, in bytes from an address that is a multiple of
/// kWorkspaceAlign.
struct FusedExpertsWorkspace {
  static constexpr std::size_t kWorkspaceAlign = 256;

  std::size_t pair_experts;   ///< int32 [pair], where ids are not used as they are
  std::size_t sorted_pairs;   ///< int32 [slot of a block]
  std::size_t block_experts;  ///< int32 [block]
  std::size_t num_slots;      ///< int32
  std::size_t intermediate;   ///< [pair, padded F] of the type of x
  std::size_t rows;           ///< weighted [pair, padded H] of the type of x
  std::size_t alignment;      ///< what align_block_size needs
  std::int64_t max_slots;
  std::int64_t max_blocks;

  FusedExpertsWorkspace(const core::FusedExpertsProblem& problem, std::int64_t num_tokens,
                        const ProductTile& tile);
  /// Of all, with `alignment_bytes` for align_block_size, at any address.
  std::size_t bytes(std::size_t alignment_bytes) const {
    return alignment + alignment_bytes + kWorkspaceAlign;
  }
};

/// Whether align_block_size can read the ids as they are.
bool has_plain_ids(const core::FusedExpertsProblem& problem);

/// "64x128 tiles, 2 chunks of 8192 tokens"
std::string describe_plan(std::size_t tile, const core::FusedExpertsProblem& problem);

}  // namespace tessera::cuda
