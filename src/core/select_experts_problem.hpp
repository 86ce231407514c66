// What an implementation of select_experts takes.
#pragma once

#include <dlpack/dlpack.h>

#include <cstdint>

#include "tessera/select_experts.hpp"

namespace tessera::core {

/// A validated call: every pointer is good for its length, and nothing overlaps.
struct SelectExpertsProblem {
  const void* router_logits;
  const float* correction_bias;          ///< null: none
  const std::int32_t* num_valid_tokens;  ///< null: all tokens count
  float* topk_weights;
  std::int32_t* topk_ids;
  DLDataType dtype;  ///< of the logits
  std::int64_t num_tokens;
  std::int64_t num_experts;
  std::int64_t top_k;
  std::int64_t logits_stride;     ///< elements from a token's logits to the next one's
  std::int64_t num_expert_group;  ///< 1: no groups
  std::int64_t topk_group;
  Scoring scoring;
  bool renormalize;
  float routed_scaling_factor;

  std::int64_t group_size() const { return num_experts / num_expert_group; }
};

}  // namespace tessera::core
