// The part of select_experts in the kernels of select_and_align.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/select_and_align/kernel.hpp"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/token.cuh"

namespace tessera::cuda {

/// Selects for the tokens [first, end): each of `num_warps` warps for one after the other. After
/// pdl_wait().
template <int kPerLane, Scoring kScoring, bool kIsPlain>
__device__ __forceinline__ void select_for_tokens(const SelectExpertsKernelArgs& args, int first,
                                                  int end, int num_warps, unsigned char* memory) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const SelectExpertsLayout layout = select_and_align_warp_layout(args);
  const WarpMemory of_warp{layout, memory + static_cast<std::size_t>(warp) * layout.bytes()};
  for (int token = first + warp; token < end; token += num_warps) {
    select_for_token<InRegisters<kPerLane>, kScoring, kIsPlain>(args, of_warp, token);
    __syncwarp();  // the next token takes the same memory
  }
}

}  // namespace tessera::cuda
