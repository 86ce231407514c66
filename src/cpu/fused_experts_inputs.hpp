// What a pair of fused_experts asks for: its expert and its weight.
#pragma once

#include <cstdint>

#include "core/fused_experts_problem.hpp"
#include "cpu/floating_point.hpp"
#include "cpu/read_once.hpp"

namespace tessera::cpu {

/// The expert of a pair, or -1 if the pair does not count.
inline std::int64_t expert_of(const core::FusedExpertsProblem& p, std::int64_t token,
                              std::int64_t slot) {
  const std::int64_t index = token * p.topk_ids_stride + slot;
  const std::int64_t id = p.topk_ids_dtype.bits == 64
                              ? read_once(static_cast<const std::int64_t*>(p.topk_ids) + index)
                              : read_once(static_cast<const std::int32_t*>(p.topk_ids) + index);
  if (id < 0 || id >= p.num_global_experts) return -1;
  const std::int64_t expert = p.expert_map == nullptr ? id : read_once(p.expert_map + id);
  return expert >= 0 && expert < p.num_experts ? expert : -1;
}

inline float router_weight(const core::FusedExpertsProblem& p, std::int64_t token,
                           std::int64_t slot) {
  const std::int64_t index = token * p.topk_weights_stride + slot;
  if (p.topk_weights_dtype.code == kDLBfloat) {
    return to_float(static_cast<const Bfloat16*>(p.topk_weights)[index]);
  }
  return p.topk_weights_dtype.bits == 16
             ? to_float(static_cast<const Float16*>(p.topk_weights)[index])
             : static_cast<const float*>(p.topk_weights)[index];
}

}  // namespace tessera::cpu
