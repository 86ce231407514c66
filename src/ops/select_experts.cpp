// select_experts: its arguments as implementations take them.
#include "tessera/select_experts.hpp"

#include <cmath>
#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/layout.hpp"
#include "core/op.hpp"
#include "ops/ops.hpp"
#include "ops/select_experts.hpp"

namespace tessera {

using core::SelectExpertsProblem;
using core::Validator;
using namespace select_experts_schema;

bool ops::select_experts_sizes(const SelectExpertsArgs& args, std::int64_t* symbols,
                               Validator* check) {
  const std::int64_t num_experts = symbols[kNumExperts];
  if (!check->in_range("router_logits.shape[1]", num_experts, 1, kInt32Max) ||
      !check->in_range("top_k", args.top_k, 1, num_experts)) {
    return false;
  }
  if (num_experts % args.num_expert_group != 0) {
    return check->fail(StatusCode::kInvalidValue, "num_expert_group",
                       "a divisor of the number of experts, " + std::to_string(num_experts),
                       std::to_string(args.num_expert_group));
  }
  if (!check->in_range("topk_group", args.topk_group, 1, args.num_expert_group)) return false;
  const std::int64_t most = num_experts / args.num_expert_group * args.topk_group;
  if (args.top_k > most) {
    return check->fail(StatusCode::kInvalidValue, "top_k",
                       "at most " + std::to_string(most) +
                           ", the experts of topk_group = " + std::to_string(args.topk_group) +
                           (args.topk_group == 1 ? " group" : " groups"),
                       std::to_string(args.top_k));
  }
  return std::isfinite(args.routed_scaling_factor) ||
         check->fail(StatusCode::kInvalidValue, "routed_scaling_factor", "a finite number",
                     core::to_string(args.routed_scaling_factor));
}

SelectExpertsProblem ops::select_experts_problem(const SelectExpertsArgs& args,
                                                 const std::int64_t* symbols) {
  SelectExpertsProblem problem{};
  problem.router_logits = args.router_logits.data;
  problem.correction_bias = static_cast<const float*>(args.correction_bias.data);
  problem.num_valid_tokens = static_cast<const std::int32_t*>(args.num_valid_tokens.data);
  problem.topk_weights = static_cast<float*>(args.topk_weights.data);
  problem.topk_ids = static_cast<std::int32_t*>(args.topk_ids.data);
  problem.dtype = args.router_logits.dtype;
  problem.num_tokens = symbols[kNumTokens];
  problem.num_experts = symbols[kNumExperts];
  problem.top_k = symbols[kTopK];
  problem.logits_stride = core::stride_of(args.router_logits, 0);
  problem.num_expert_group = args.num_expert_group;
  problem.topk_group = args.topk_group;
  problem.scoring = args.scoring;
  problem.renormalize = args.renormalize;
  problem.routed_scaling_factor = args.routed_scaling_factor;
  return problem;
}

std::string ops::describe_selection(const SelectExpertsProblem& problem) {
  std::string text = std::to_string(problem.num_tokens) + " tokens, " +
                     std::to_string(problem.num_experts) + " experts, top_k " +
                     std::to_string(problem.top_k) + ", " + core::to_string(problem.dtype) + ", " +
                     kScoringNames[static_cast<std::size_t>(problem.scoring)];
  if (problem.correction_bias != nullptr) text += ", biased";
  if (problem.num_expert_group > 1) {
    text += ", " + std::to_string(problem.topk_group) + " of " +
            std::to_string(problem.num_expert_group) + " groups";
  }
  return text;
}

namespace {

constexpr core::OutOfMemory kOutOfMemory("select_experts");

constexpr core::Op kOp =
    core::make_op<SelectExpertsArgs, SelectExpertsProblem, ops::select_experts_sizes,
                  ops::select_experts_problem, ops::describe_selection>(kSelectExpertsSchema,
                                                                        kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kSelectExperts = core::make_entry<SelectExpertsArgs, kOp>();

Status select_experts_workspace_bytes(const SelectExpertsArgs& args, const Context& context,
                                      std::size_t* bytes) {
  OpSizes found;
  Status status = core::sizes(kOp, &args, context, &found);
  if (status.ok()) *bytes = found.workspace_bytes;
  return status;
}

Status select_experts(const SelectExpertsArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

}  // namespace tessera
