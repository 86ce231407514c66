// What the launcher of lora_align_block_size and its kernel share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "cuda/align_block_size/kernels.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/parts/division.hpp"
#include "cuda/parts/layout.hpp"

namespace tessera::cuda {

/// The arguments of the kernel. Members have the names and meaning of the op's contract.
struct LoraAlignBlockSizeKernelArgs {
  AlignBlockSizePlainArgs first_row;  ///< with the outputs of adapter 0
  Division top_k_division;
  const std::int32_t* token_lora_mapping;
  const std::int32_t* adapter_enabled;  ///< null: all adapters are enabled
  bool has_lora_ids;                    ///< if not, all adapters are in use
  const std::int32_t* lora_ids;
  std::int64_t num_lora_ids;

  std::int32_t ctas_per_row;
  std::int32_t counting_warps;  ///< warps of a CTA that have ids, and counters
  std::uint32_t ids_per_warp;
};
static_assert(std::is_standard_layout_v<LoraAlignBlockSizeKernelArgs>);

/// The kernel for up to kLoraMaxThreads threads per CTA and ctas_per_row CTAs per row, which are a
/// cluster if there is more than one.
const void* lora_align_block_size_kernel(IdWidth width);
inline constexpr int kLoraMaxThreads = 1024;
inline constexpr int kLoraMaxCtasPerRow = 8;

/// The kernel's dynamic shared memory.
struct LoraLayout {
  Section<std::uint32_t> cta_counts;  ///< of this CTA; the other CTAs of the row read them
  Section<std::int32_t> first_blocks;
  Section<std::uint32_t> counts;  ///< a row per counting warp
  Section<std::uint32_t> masks;   ///< a row per counting warp

  constexpr LoraLayout(std::size_t num_experts, std::size_t counting_warps)
      : cta_counts(0, counters_per_row(num_experts)),
        first_blocks(cta_counts.end, counters_per_row(num_experts)),
        counts(first_blocks.end, counting_warps * counters_per_row(num_experts)),
        masks(counts.end, counting_warps * counters_per_row(num_experts)) {}
  constexpr std::size_t bytes() const { return masks.end; }
};

/// Bound on the kernel's static shared memory.
inline constexpr std::size_t kLoraStaticSharedBytes = 128;

}  // namespace tessera::cuda
