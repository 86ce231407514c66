// What the launcher of select_and_align and its kernels share: arguments, limits and the functions
// that find a kernel's instances. No CUDA headers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/align_block_size/kernels.hpp"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {

/// The alignment's arguments, for its code that takes AlignBlockSizePlainArgs, and statistics.
struct SelectAndAlignBlocksArgs {
  AlignBlockSizeKernelArgs base;

  double reciprocal_of_experts;  ///< 1 / num_experts, rounded to nearest
  double* statistics;            ///< null: not requested

  // NOLINTBEGIN(readability-identifier-naming): the names of AlignBlockSizeExtendedArgs' members.
  static constexpr std::uint32_t id_bias = 0;
  static constexpr std::uint32_t id_shift = 0;
  static constexpr std::uint32_t id_mask = ~0u;
  static constexpr std::int32_t first_expert = 0;
  static constexpr bool map_tail = false;
  // NOLINTEND(readability-identifier-naming)
};

/// The arguments of both kernels.
struct SelectAndAlignKernelArgs {
  SelectExpertsKernelArgs selection;
  SelectAndAlignBlocksArgs blocks;
  std::int32_t tokens_per_cta;
  std::uint32_t blocks_memory;  ///< where the alignment's part of the shared memory begins
};

/// The numbers of experts that kernels have instances for, 32 for each register of a lane.
inline constexpr std::int64_t kSelectAndAlignExperts[] = {128, 256, 512};
inline constexpr int kNumSelectAndAlignSizes = 3;

/// One of a kernel's instances.
struct SelectAndAlignInstance {
  int size;  ///< a place in kSelectAndAlignExperts
  Scoring scoring;
  bool is_plain;  ///< neither a bias nor groups that are removed
};

/// One CTA. A warp selects for one token after the other.
const void* select_and_align_one_cta_kernel(const SelectAndAlignInstance& instance);
inline constexpr int kSelectAndAlignOneCtaThreads = 256;
inline constexpr int kSelectAndAlignOneCtaMaxTokens = 32;

/// One cluster of at most kClusterMaxCtas CTAs, each of which selects for its own tokens, and then
/// places their pairs. Needs compute capability 9.0.
const void* select_and_align_cluster_kernel(const SelectAndAlignInstance& instance);
inline constexpr int kSelectAndAlignClusterThreads = 512;
inline constexpr int kSelectAndAlignClusterMaxTokens = 256;

}  // namespace tessera::cuda
