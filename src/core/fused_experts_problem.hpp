// What an implementation of fused_experts takes.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

#include "tessera/fused_experts.hpp"

namespace tessera::core {

/// Which elements of weights in float8_e4m3fn share a scale.
enum class WeightScales : std::int8_t {
  kNone,  ///< there are no scales: the weights have another data type
  kPerExpert,
  kPerRow,
  kPerBlock,  ///< of 128 x 128
};

inline constexpr std::int64_t kScaleBlock = 128;

constexpr std::int64_t num_scale_blocks(std::int64_t length) {
  return (length + kScaleBlock - 1) / kScaleBlock;
}

/// The scales of one product's weights: row r of an expert has those at
/// data[expert * expert_stride + scale row of r * num_columns].
struct ExpertScales {
  const float* data;  ///< null: none
  WeightScales kind;
  std::int64_t expert_stride;
  std::int64_t num_columns;  ///< of scales: blocks of a row, or 1
  std::int64_t half_rows;    ///< from this row on, blocks of rows begin anew

  /// The scales of a row's blocks of columns, or its only one.
  constexpr const float* of_row(std::int64_t expert, std::int64_t row) const {
    const float* const scales = data + expert * expert_stride;
    if (kind == WeightScales::kPerExpert) return scales;
    if (kind == WeightScales::kPerRow) return scales + row;
    const std::int64_t block = row < half_rows
                                   ? row / kScaleBlock
                                   : num_scale_blocks(half_rows) + (row - half_rows) / kScaleBlock;
    return scales + block * num_columns;
  }
};

/// The weights of all experts for one of the two products: element (expert, row, column) lies at
/// data[expert * expert_stride + row * row_stride + column * column_stride], of the type of x, or
/// of float8_e4m3fn if there are scales. column_stride is 1, or row_stride is: then the weights are
/// transposed.
struct ExpertWeights {
  const void* data;
  std::int64_t expert_stride;
  std::int64_t row_stride;
  std::int64_t column_stride;
  const void* bias;  ///< null: none; else [expert, row], of the output's type, contiguous rows
  std::int64_t bias_stride;
  ExpertScales scales{};
};

/// A validated call: every pointer is good for its shape, and nothing overlaps. Strides are in
/// elements, as stride_of() has them.
struct FusedExpertsProblem {
  const void* x;
  const void* topk_weights;
  const void* topk_ids;
  const std::int32_t* expert_map;  ///< null: there is none, or it has no entries
  void* output;
  ExpertWeights w13;
  ExpertWeights w2;
  std::int64_t x_stride;
  std::int64_t topk_weights_stride;
  std::int64_t topk_ids_stride;
  std::int64_t output_stride;
  std::int64_t num_tokens;
  std::int64_t hidden_size;
  std::int64_t num_experts;
  std::int64_t num_global_experts;  ///< ids from here on do not count
  std::int64_t intermediate_size;
  std::int64_t top_k;
  DLDataType dtype;  ///< of biases and output, and of what is not in float8_e4m3fn
  DLDataType topk_weights_dtype;
  DLDataType topk_ids_dtype;
  Activation activation;
  bool apply_router_weight_on_input;
  bool batch_invariant;
  float swiglu_alpha;
  float swiglu_beta;
  float swiglu_limit;

  // With weights in float8_e4m3fn.
  bool is_x_fp8;  ///< x is float8_e4m3fn, too
  bool use_ue8m0;
  const float* x_scale;  ///< null: computed
  /// Scales of a row of x: 0: all rows have the one at `x_scale`, and a whole row shares it.
  std::int64_t x_scale_stride;
  const float* intermediate_scale;  ///< null: computed

  /// Without a map ids are experts.
  bool has_map() const { return expert_map != nullptr || num_global_experts == 0; }

  bool has_fp8_weights() const { return w13.scales.kind != WeightScales::kNone; }

  /// Rows of w13 per expert.
  std::int64_t num_gate_up_rows() const {
    return has_gate(activation) ? 2 * intermediate_size : intermediate_size;
  }
};

}  // namespace tessera::core
