// The sizes of a call of fused_experts, and its workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/fused_experts_problem.hpp"
#include "cpu/fused_experts_kernels.hpp"
#include "tessera/context.hpp"

namespace tessera::cpu {

/// Some pairs of one expert. The pairs of a chunk are numbered in the order of their experts.
struct TokenBlock {
  std::int64_t expert;
  std::int64_t first_pair;
  std::int64_t num_pairs;
};

/// A call works in chunks of C tokens. With P = C k pairs, S threads at most
/// (ThreadPool::kMaxSlices or fewer) and blocks of B tokens, the workspace takes, up to the
/// rounding to cache lines,
///
///   P (f + kPairBytes)                       f: bytes of an activated row of F elements
///   S B (h + 2 kMaxActivated 4)              h: bytes of a packed token of H elements
///   S (partial_sums_bytes(B) + kMaxPanelRows kMaxBlockBytes)
///   S max(P kColumns, min(P, kFewPairs) kMaxColumns) 4
///   S (H + 5 F + scales)                     with weights in float8_e4m3fn alone
///
/// Packed elements have 2 bytes with cpu/avx512_bf16, else 4. C is T, or as many tokens as
/// kMaxBytes has room for. Nothing depends on E, on strides, or on the number of threads that a
/// call really has.
struct FusedExpertsLayout {
  /// A workspace has at most this size, if that is enough for kMinChunkTokens.
  static constexpr std::int64_t kMaxBytes = std::int64_t{1} << 28;
  static constexpr std::int64_t kMinChunkTokens = 64;
  /// Tokens that share a read of their expert's weights; as many as stay in the L2 cache.
  static constexpr std::int64_t kMaxBlockTokens = 96;
  static constexpr std::int64_t kMinBlockTokens = 12;
  static constexpr std::int64_t kMaxTokenBytes = std::int64_t{1} << 19;
  /// The number of a pair in its chunk has 32 bits.
  static constexpr std::int64_t kMaxChunkPairs = (std::int64_t{1} << 32) - 1;
  static constexpr std::int64_t kPairBytes =
      sizeof(std::uint64_t) + sizeof(std::uint32_t) + sizeof(TokenBlock);
  /// Columns of the output that are computed at once: kMaxColumns of at most kFewPairs pairs, as
  /// then each expert's rows of w2 are read just once, and faster in longer pieces.
  static constexpr std::int64_t kColumns = 32;
  static constexpr std::int64_t kMaxColumns = 128;
  static constexpr std::int64_t kFewPairs = 128;

  FusedExpertsLayout(const core::FusedExpertsProblem& p, const ExpertKernels& kernels,
                     const Context& context);

  PackedLayout hidden;        ///< tokens of a block; its stride is for `block_tokens` tokens
  PackedLayout intermediate;  ///< activated rows of a chunk; its stride is for `chunk_pairs` pairs
  std::int64_t block_tokens;
  std::int64_t chunk_tokens;
  std::int64_t columns;

  // Sizes in bytes, multiples of a cache line.
  std::int64_t tokens_bytes;
  std::int64_t weights_bytes;
  std::int64_t partial_bytes;
  std::int64_t gate_up_bytes;
  std::int64_t fp8_bytes;
  std::int64_t down_bytes;
  std::int64_t thread_bytes;  ///< the sum of these
  std::int64_t keys_bytes;
  std::int64_t positions_bytes;
  std::int64_t blocks_bytes;
  std::int64_t activated_bytes;
  std::int64_t total_bytes;
};

}  // namespace tessera::cpu
