// The sums of a warp, and the scales of numbers in float8_e4m3fn.
#pragma once

#include <cstdint>

#include "core/fused_experts_problem.hpp"
#include "cuda/fused_experts/kernels.hpp"
#include "cuda/parts/division.cuh"

namespace tessera::cuda {

/// kRows x kColumns sums of the tile, as multiply_add() leaves them in the lanes.
template <int kRows, int kColumns>
struct Sums {
  float of[kRows / 16][kColumns / 8][4] = {};
};

/// The scales of a warp's sums. Where scales are of blocks, the terms of a stage are in one block,
/// and the columns of a tile in one block of rows of the weights, or in one of gate and one of up.
template <int kRows, int kColumns>
class ProductScales {
 public:
  using WarpSums = Sums<kRows, kColumns>;

  /// `pairs` has the pair of each row of the warp, or -1; `a_pair` is one of the tile.
  /// weight_row(column) returns the row of the weights that a column of the tile multiplies, or -1.
  template <typename WeightRow>
  __device__ __forceinline__ ProductScales(const Fp8ProductArgs& args, std::int32_t expert,
                                           const std::int32_t* pairs, std::int32_t a_pair,
                                           const WeightRow& weight_row)
      : of_weights_(args.weight_scales), expert_(expert) {
#pragma unroll
    for (int i = 0; i < kRows / 8; ++i) {
      const std::int32_t own = pairs[8 * i + lane() / 4];
      // Nothing reads the sums of a row without a pair.
      const std::int32_t pair = own >= 0 ? own : a_pair;
      of_rows_[i] =
          args.row_scales + std::int64_t{divide(pair, args.slots_per_row)} * args.row_scale_stride;
    }
    of_eights_[0] = of_weights_.of_row(expert, weight_row(0));
    of_eights_[1] = args.is_gated ? of_weights_.of_row(expert, weight_row(8)) : of_eights_[0];
  }

  /// Adds the sums of a block times its scales, and clears them.
  __device__ __forceinline__ void add_block(std::int32_t block, WarpSums* of_block,
                                            WarpSums* sums) const {
    const float of_eights[2] = {of_eights_[0][block], of_eights_[1][block]};
#pragma unroll
    for (int i = 0; i < kRows / 16; ++i) {
      const float of_rows[2] = {of_rows_[2 * i][block], of_rows_[2 * i + 1][block]};
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          float& sum = of_block->of[i][j][k];
          const float scale = of_eights[j % 2] * of_rows[k / 2];
          sums->of[i][j][k] = __fmaf_rn(scale, sum, sums->of[i][j][k]);
          sum = 0;
        }
      }
    }
  }

  /// Multiplies the sums by scales of whole rows.
  template <typename WeightRow>
  __device__ __forceinline__ void multiply(int first_column, const WeightRow& weight_row,
                                           WarpSums* sums) const {
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const std::int64_t row = weight_row(first_column + 8 * j + lane() % 4 * 2 + k % 2);
        const float of_column = row < 0 ? 0 : *of_weights_.of_row(expert_, row);
#pragma unroll
        for (int i = 0; i < kRows / 16; ++i) {
          sums->of[i][j][k] *= of_column * *of_rows_[2 * i + k / 2];
        }
      }
    }
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }

  const core::ExpertScales& of_weights_;
  std::int32_t expert_;
  const float* of_rows_[kRows / 8];
  const float* of_eights_[2];  ///< of a warp's even and odd eights of columns
};

}  // namespace tessera::cuda
