// What the kernels for compute capability 9.0a do with the sums of a stage of numbers in
// float8_e4m3fn.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/parts/wgmma.cuh"

namespace tessera::cuda {

/// The scales of blocks of a stage: of the lane's two rows, and of the two boxes of weights.
class WgmmaBlockScales {
 public:
  /// Reads the scales that have come with the stage.
  __device__ __forceinline__ void read(std::uint32_t scales) {
    const std::uint32_t warp = (threadIdx.x - kWarpgroupThreads) / 32;
    const std::uint32_t row = 16 * warp + threadIdx.x % 32 / 4;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(of_rows_[0]) : "r"(scales + 4 * row) : "memory");
    asm volatile("ld.shared.f32 %0, [%1];"
                 : "=f"(of_rows_[1])
                 : "r"(scales + 4 * (row + 8))
                 : "memory");
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(of_boxes_[0]), "=f"(of_boxes_[1])
                 : "r"(scales + 4 * kWgmmaPairs)
                 : "memory");
  }

  /// Adds the sums of a box of weights, scaled.
  __device__ __forceinline__ void add(int box, const float (&of_box)[kWgmmaBoxRows / 2],
                                      float (&sums)[kWgmmaColumns / 2]) const {
    const float scales[2] = {of_boxes_[box] * of_rows_[0], of_boxes_[box] * of_rows_[1]};
#pragma unroll
    for (int i = 0; i < kWgmmaBoxRows / 2; ++i) {
      float& sum = sums[box * (kWgmmaBoxRows / 2) + i];
      sum = __fmaf_rn(scales[i / 2 % 2], of_box[i], sum);
    }
  }

 private:
  float of_rows_[2];
  float of_boxes_[2];
};

/// Scales of whole rows multiply the sums of the tile, not of a stage.
struct WgmmaRowScales {
  __device__ __forceinline__ void read(std::uint32_t) {}

  /// Adds the sums of a box of weights.
  __device__ __forceinline__ void add(int box, const float (&of_box)[kWgmmaBoxRows / 2],
                                      float (&sums)[kWgmmaColumns / 2]) const {
#pragma unroll
    for (int i = 0; i < kWgmmaBoxRows / 2; ++i) sums[box * (kWgmmaBoxRows / 2) + i] += of_box[i];
  }
};

template <Scaling kScaling>
using WgmmaStageScales =
    std::conditional_t<kScaling == Scaling::kBlocks, WgmmaBlockScales, WgmmaRowScales>;

}  // namespace tessera::cuda
