// The scales of the stages of numbers in float8_e4m3fn, for the kernels for compute
// capability 9.0a.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/fused_experts/products.cuh"
#include "cuda/fused_experts/wgmma.hpp"
#include "cuda/parts/division.cuh"
#include "cuda/parts/warp.cuh"

namespace tessera::cuda {

/// The scales of a stage: of the lane's two rows, and of the two boxes of weights.
struct WgmmaStageScales {
  float of_rows[2];
  float of_boxes[2];

  /// Adds the sums of a box of weights, scaled.
  __device__ __forceinline__ void add(int box, const float (&of_box)[kWgmmaBoxRows / 2],
                                      float (&sums)[kWgmmaColumns / 2]) const {
    const float scales[2] = {of_boxes[box] * of_rows[0], of_boxes[box] * of_rows[1]};
#pragma unroll
    for (int i = 0; i < kWgmmaBoxRows / 2; ++i) {
      float& sum = sums[box * (kWgmmaBoxRows / 2) + i];
      sum = __fmaf_rn(scales[i / 2 % 2], of_box[i], sum);
    }
  }
};

/// The scales of blocks of a tile, stage by stage. A warp loads the scales of the next stage while
/// the tensor cores multiply this one.
template <bool kIsGateUp>
class WgmmaBlockScales {
 public:
  __device__ __forceinline__ WgmmaBlockScales(const WgmmaFp8Product& args, const WgmmaPlace& place,
                                              const WgmmaRow& row) {
    if (place.first_slot < 0) return;
    std::int32_t own = row.slot;
    if constexpr (kIsGateUp) {
      // Nothing reads the sums of a row without a pair.
      const std::int32_t pair = row.pair < args.num_pairs ? row.pair : 0;
      own = static_cast<std::int32_t>(divide(pair, args.slots_per_row));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int line = static_cast<int>(threadIdx.x) % 32 / 4 + 8 * i;
      of_rows_[i] = args.row_scales + __shfl_sync(kAllLanes, own, line) * args.row_scale_stride;
      const std::int32_t output = place.first_output + (args.is_gated ? 0 : i * kWgmmaBoxRows);
      const std::int64_t row_of_box =
          args.is_gated ? gated_row(args, output, i == 1) : min(output, args.num_outputs - 1);
      of_boxes_[i] = args.weight_scales.of_row(place.expert, row_of_box);
    }
    fetch_next();
  }

  /// The scales that were fetched last.
  __device__ __forceinline__ WgmmaStageScales take() const { return next_; }

  __device__ __forceinline__ void fetch_next() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      next_.of_rows[i] = of_rows_[i][next_stage_];
      next_.of_boxes[i] = of_boxes_[i][next_stage_];
    }
    ++next_stage_;
  }

 private:
  const float* of_rows_[2];
  const float* of_boxes_[2];
  std::int32_t next_stage_ = 0;
  WgmmaStageScales next_;
};

/// Scales of whole rows multiply the sums of the tile, not of a stage.
struct WgmmaRowScales {
  __device__ __forceinline__ WgmmaRowScales(const ProductArgs&, const WgmmaPlace&,
                                            const WgmmaRow&) {}

  /// Adds the sums of a box of weights.
  __device__ __forceinline__ void add(int box, const float (&of_box)[kWgmmaBoxRows / 2],
                                      float (&sums)[kWgmmaColumns / 2]) const {
#pragma unroll
    for (int i = 0; i < kWgmmaBoxRows / 2; ++i) sums[box * (kWgmmaBoxRows / 2) + i] += of_box[i];
  }

  __device__ __forceinline__ WgmmaRowScales take() const { return *this; }
  __device__ __forceinline__ void fetch_next() {}
};

/// Numbers of 16 bits have none.
struct WgmmaNoScales {
  __device__ __forceinline__ WgmmaNoScales(const ProductArgs&, const WgmmaPlace&, const WgmmaRow&) {
  }
};

template <Scaling kScaling, bool kIsGateUp>
using WgmmaScales = std::conditional_t<
    kScaling == Scaling::kBlocks, WgmmaBlockScales<kIsGateUp>,
    std::conditional_t<kScaling == Scaling::kRows, WgmmaRowScales, WgmmaNoScales>>;

}  // namespace tessera::cuda
