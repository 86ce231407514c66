// The part of select_experts in the kernels of select_and_align.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/select_and_align/kernel.hpp"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/scores.cuh"
#include "cuda/select_experts/token.cuh"

namespace tessera::cuda {

/// Selects for the tokens [first, end), after pdl_wait(). Each of `num_warps` warps takes one token
/// after the other.
template <int kPerLane, Scoring kScoring, bool kIsPlain>
__device__ __forceinline__ void select_for_tokens(const SelectExpertsKernelArgs& args, int first,
                                                  int end, int num_warps, unsigned char* memory) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const WarpMemory of_warp{args.layout,
                           memory + static_cast<std::size_t>(warp) * args.layout.bytes()};
  for (int token = first + warp; token < end; token += num_warps) {
    if (args.num_valid_tokens != nullptr && token >= *args.num_valid_tokens) {
      write_padding(args, token);
      continue;
    }
    Selection<InRegisters<kPerLane>, kScoring, kIsPlain>(args, of_warp).run(token);
    __syncwarp();  // the next token takes the same memory
  }
}

}  // namespace tessera::cuda
