// What an implementation of fused_experts takes.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

#include "tessera/fused_experts.hpp"

namespace tessera::core {

/// The weights of all experts for one of the two products: element (expert, row, column) lies at
/// data[expert * expert_stride + row * row_stride + column * column_stride], of the type of x.
/// column_stride is 1, or row_stride is: then the weights are transposed.
struct ExpertWeights {
  const void* data;
  std::int64_t expert_stride;
  std::int64_t row_stride;
  std::int64_t column_stride;
  const void* bias;  ///< null: none; else [expert, row], of the type of x, contiguous rows
  std::int64_t bias_stride;
};

/// A validated call: every pointer is good for its shape, and nothing overlaps. Strides are in
/// elements; along an axis of one element they are 0.
struct FusedExpertsProblem {
  const void* x;
  const void* topk_weights;
  const void* topk_ids;
  const std::int32_t* expert_map;  ///< null: ids are experts
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
  DLDataType dtype;  ///< of x, weights, biases and output
  DLDataType topk_weights_dtype;
  DLDataType topk_ids_dtype;
  Activation activation;
  bool apply_router_weight_on_input;
  bool batch_invariant;
  float swiglu_alpha;
  float swiglu_beta;
  float swiglu_limit;

  /// Rows of w13 per expert.
  std::int64_t num_gate_up_rows() const {
    return has_gate(activation) ? 2 * intermediate_size : intermediate_size;
  }
};

}  // namespace tessera::core
