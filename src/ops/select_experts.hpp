// select_experts as a part of other ops.
#pragma once

#include <cstdint>
#include <string>

#include "core/select_experts_problem.hpp"
#include "core/validation.hpp"
#include "tessera/select_experts.hpp"

namespace tessera::ops {

/// Checks the op's own rules about numbers. `symbols` are those of its table, which arguments give.
bool select_experts_sizes(const SelectExpertsArgs& args, std::int64_t* symbols,
                          core::Validator* check);

core::SelectExpertsProblem select_experts_problem(const SelectExpertsArgs& args,
                                                  const std::int64_t* symbols);

/// The size of a problem in words.
std::string describe_selection(const core::SelectExpertsProblem& problem);

/// The call of select_experts among the steps of another op, whose arguments have the names of its
/// own.
template <typename Args>
SelectExpertsArgs selection_of(const Args& args) {
  return {.router_logits = args.router_logits,
          .correction_bias = args.correction_bias,
          .num_valid_tokens = args.num_valid_tokens,
          .topk_weights = args.topk_weights,
          .topk_ids = args.topk_ids,
          .top_k = args.top_k,
          .scoring = args.scoring,
          .renormalize = args.renormalize,
          .num_expert_group = args.num_expert_group,
          .topk_group = args.topk_group,
          .routed_scaling_factor = args.routed_scaling_factor};
}

}  // namespace tessera::ops
