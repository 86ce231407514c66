#include "cpu/fused_experts_layout.hpp"

#include <algorithm>
#include <limits>

#include "core/dispatch.hpp"
#include "cpu/fused_experts_packed_fp8.hpp"
#include "cpu/thread_pool.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

constexpr std::int64_t kFloatBytes = sizeof(float);

std::int64_t divide_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit; }

std::int64_t cache_lines(std::int64_t bytes) {
  constexpr std::int64_t kLine = Workspace::kCacheLineBytes;
  return divide_up(bytes, kLine) * kLine;
}

/// Blocks of about the same width, or those of the scales; the stride is still open.
PackedLayout packed_layout(std::int64_t length, const core::FusedExpertsProblem& p,
                           const ExpertKernels& kernels) {
  if (p.w13.scales.kind == core::WeightScales::kPerBlock && length > core::kScaleBlock) {
    return {length, core::kScaleBlock, 0};
  }
  const std::int64_t num_blocks = divide_up(length, kMaxBlockBytes / kernels.packed_bytes);
  const std::int64_t width = divide_up(divide_up(length, num_blocks), kernels.step) * kernels.step;
  return {length, width, 0};
}

std::int64_t bytes_per_vector(const PackedLayout& layout, const ExpertKernels& kernels) {
  return divide_up(layout.length, layout.width) * layout.width * kernels.packed_bytes;
}

}  // namespace

FusedExpertsLayout::FusedExpertsLayout(const core::FusedExpertsProblem& p,
                                       const ExpertKernels& kernels, const Context& context)
    : hidden(packed_layout(p.hidden_size, p, kernels)),
      intermediate(packed_layout(p.intermediate_size, p, kernels)) {
  const std::int64_t token_bytes = bytes_per_vector(hidden, kernels);
  block_tokens = std::clamp(kMaxTokenBytes / token_bytes, kMinBlockTokens, kMaxBlockTokens);
  if (p.num_tokens < block_tokens) {
    // A token may have the same expert in several slots.
    block_tokens = std::min(block_tokens, p.num_tokens * p.top_k);
  }
  hidden.block_stride = block_tokens * hidden.width;

  tokens_bytes = cache_lines(block_tokens * token_bytes);
  weights_bytes = cache_lines(kMaxPanelRows * kMaxBlockBytes);
  partial_bytes = cache_lines(partial_sums_bytes(block_tokens));
  gate_up_bytes = cache_lines(block_tokens * 2 * kMaxActivated * kFloatBytes);
  fp8_bytes = p.has_fp8_weights() ? cache_lines(PackedFp8::bytes_for(p)) : 0;
  const std::int64_t fixed_thread_bytes =
      tokens_bytes + weights_bytes + partial_bytes + gate_up_bytes + fp8_bytes;

  // All that is kept per pair: for each thread the sums of w2's rows, and once the rest.
  const std::int64_t num_threads =
      std::min(core::max_possible_threads(context), ThreadPool::kMaxSlices);
  const std::int64_t pair_bytes =
      bytes_per_vector(intermediate, kernels) + kPairBytes + num_threads * kColumns * kFloatBytes;
  const std::int64_t most_pairs =
      std::min((kMaxBytes - num_threads * fixed_thread_bytes) / pair_bytes, kMaxChunkPairs);
  chunk_tokens = std::min(p.num_tokens, std::max(most_pairs / p.top_k, kMinChunkTokens));
  if (chunk_tokens > kMaxChunkPairs / p.top_k) chunk_tokens = kMaxChunkPairs / p.top_k;
  const std::int64_t chunk_pairs = chunk_tokens * p.top_k;
  intermediate.block_stride = chunk_pairs * intermediate.width;

  columns = chunk_pairs <= kFewPairs ? kMaxColumns : kColumns;
  // A workspace for more tokens has room for fewer.
  down_bytes =
      cache_lines(std::max(chunk_pairs * kColumns, std::min(chunk_pairs, kFewPairs) * kMaxColumns) *
                  kFloatBytes);
  thread_bytes = fixed_thread_bytes + down_bytes;
  keys_bytes = cache_lines(chunk_pairs * static_cast<std::int64_t>(sizeof(std::uint64_t)));
  positions_bytes = cache_lines(chunk_pairs * static_cast<std::int64_t>(sizeof(std::uint32_t)));
  blocks_bytes = cache_lines(chunk_pairs * static_cast<std::int64_t>(sizeof(TokenBlock)));
  const std::int64_t other_bytes =
      keys_bytes + positions_bytes + blocks_bytes + num_threads * thread_bytes;
  if (__builtin_mul_overflow(chunk_pairs, bytes_per_vector(intermediate, kernels),
                             &activated_bytes) ||
      __builtin_add_overflow(activated_bytes, other_bytes, &total_bytes)) {
    // No machine has that much.
    total_bytes = std::numeric_limits<std::int64_t>::max() / 2;
  }
}

}  // namespace tessera::cpu
