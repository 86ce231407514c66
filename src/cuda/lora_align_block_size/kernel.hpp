// What the launcher of lora_align_block_size and its kernel share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/align_block_size/kernels.hpp"

namespace tessera::cuda {

/// The arguments of the kernel; names and meaning are those of the op's contract.
struct LoraAlignBlockSizeKernelArgs {
  AlignBlockSizePlainArgs first_row;  ///< the outputs are those of adapter 0
  Division top_k_division;
  const std::int32_t* token_lora_mapping;
  const std::int32_t* adapter_enabled;  ///< null: all are
  bool has_lora_ids;                    ///< else all adapters are in use
  const std::int32_t* lora_ids;
  std::int64_t num_lora_ids;

  std::int32_t ctas_per_row;
  std::int32_t counting_warps;  ///< of a CTA: those that have ids, and counters
  std::uint32_t ids_per_warp;
};

/// The kernel, for up to kLoraMaxThreads threads: ctas_per_row CTAs a row, which are a cluster if
/// they are more than one.
const void* lora_align_block_size_kernel(IdWidth width);
inline constexpr int kLoraMaxThreads = 1024;
inline constexpr int kLoraMaxCtasPerRow = 8;

/// A row of counters and one of lane masks a warp, the CTA's counts, the groups' first blocks.
constexpr std::size_t lora_shared_bytes(std::size_t num_experts, int counting_warps) {
  return counters_per_row(num_experts) * sizeof(std::uint32_t) * (2 * counting_warps + 2);
}

/// Besides its dynamic shared memory the kernel has a word a warp.
inline constexpr std::size_t kLoraStaticSharedBytes = 4 * kLoraMaxThreads / 32;

}  // namespace tessera::cuda
