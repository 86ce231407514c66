// What the launcher of select_and_align and its kernel share: arguments, limits and the function
// that finds the kernel's instances. No CUDA headers.
#pragma once

#include <cstdint>

#include "cuda/align_block_size/kernels.hpp"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {

struct SelectAndAlignKernelArgs {
  SelectExpertsKernelArgs selection;
  AlignBlockSizePlainArgs blocks;
};

/// The numbers of experts that the kernel has instances for, 32 for each register of a lane.
inline constexpr std::int64_t kSelectAndAlignExperts[] = {128, 256, 512};
inline constexpr int kNumSelectAndAlignSizes = 3;

/// One of the kernel's instances.
struct SelectAndAlignInstance {
  int size;  ///< a place in kSelectAndAlignExperts
  Scoring scoring;
  bool is_plain;  ///< neither a bias nor groups that are removed
};

/// One CTA. Each warp selects for one token, and then the threads place the pairs, four of them
/// each.
const void* select_and_align_kernel(const SelectAndAlignInstance& instance);
inline constexpr int kSelectAndAlignMaxTokens = 8;
inline constexpr int kSelectAndAlignMaxPairs = 64;
inline constexpr int kSelectAndAlignThreadsPerPair = 4;
inline constexpr int kSelectAndAlignThreads =
    kSelectAndAlignMaxPairs * kSelectAndAlignThreadsPerPair;
static_assert(kSelectAndAlignThreads == 32 * kSelectAndAlignMaxTokens);

/// What the kernel keeps of each pair, in static shared memory.
struct SelectAndAlignPairs {
  alignas(16) std::uint32_t buckets[kSelectAndAlignMaxPairs];
  alignas(16) std::int32_t blocks[kSelectAndAlignMaxPairs];  ///< of a bucket, at its first pair
};

}  // namespace tessera::cuda
