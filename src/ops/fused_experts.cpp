// fused_experts: its arguments as implementations take them.
#include "tessera/fused_experts.hpp"

#include <cmath>
#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/layout.hpp"
#include "core/op.hpp"
#include "ops/fused_experts.hpp"
#include "ops/fused_experts_scales.hpp"
#include "ops/ops.hpp"

namespace tessera {
namespace {

using core::ExpertWeights;
using core::FusedExpertsProblem;
using core::stride_of;
using core::Validator;
using namespace fused_experts_schema;

constexpr core::OutOfMemory kOutOfMemory("fused_experts");

std::string name_of(Activation activation) {
  return kActivationNames[static_cast<std::size_t>(activation)];
}

/// Parameters of swigluoai may be given with that alone; `is_good` says which are then accepted.
bool good_parameter(const char* name, float value, Activation activation, bool is_good,
                    const char* good, Validator* check) {
  if (std::isnan(value)) return true;
  if (!is_swigluoai(activation)) {
    return check->fail(StatusCode::kInvalidValue, name,
                       "none, as activation " + name_of(activation) + " has no such parameter",
                       core::to_string(value));
  }
  return is_good || check->fail(StatusCode::kInvalidValue, name, good, core::to_string(value));
}

}  // namespace

bool ops::fused_experts_sizes(const FusedExpertsArgs& args, std::int64_t* symbols,
                              Validator* check) {
  if (!check->in_range("x.shape[1]", symbols[kHiddenSize], 1, kInt32Max) ||
      !check->in_range("w13.shape[0]", symbols[kNumExperts], 1, kInt32Max) ||
      !check->in_range("w2.shape[2]", symbols[kIntermediateSize], 1, kInt32Max) ||
      !check->in_range("topk_weights.shape[1]", symbols[kTopK], 1, kInt32Max)) {
    return false;
  }
  const bool gated = has_gate(args.activation);
  symbols[kNumRows] = symbols[kIntermediateSize] * (gated ? 2 : 1);
  // To explain a problem, callers may leave the number out.
  if (args.w13.shape[1] != 0 && args.w13.shape[1] != symbols[kNumRows]) {
    const std::string size = "w2.shape[2] = " + std::to_string(symbols[kIntermediateSize]);
    return check->fail(StatusCode::kInvalidValue, "w13.shape[1]",
                       std::to_string(symbols[kNumRows]) + ", " + (gated ? "twice " : "as ") +
                           size + ", for activation " + name_of(args.activation),
                       std::to_string(args.w13.shape[1]));
  }
  if (args.apply_router_weight_on_input && symbols[kTopK] != 1) {
    return check->fail(StatusCode::kInvalidValue, "apply_router_weight_on_input",
                       "false where top_k is not 1",
                       "true with top_k " + std::to_string(symbols[kTopK]));
  }
  return good_parameter("swiglu_alpha", args.swiglu_alpha, args.activation,
                        std::isfinite(args.swiglu_alpha), "a finite number", check) &&
         good_parameter("swiglu_beta", args.swiglu_beta, args.activation,
                        std::isfinite(args.swiglu_beta), "a finite number", check) &&
         good_parameter("swiglu_limit", args.swiglu_limit, args.activation, args.swiglu_limit > 0,
                        "a positive number", check) &&
         good_scale_shapes(args, symbols, check);
}

namespace {

ExpertWeights weights_of(const TensorView& view, const TensorView& bias,
                         const core::ExpertScales& scales) {
  const std::int64_t column_stride = stride_of(view, 2);
  const bool is_transposed = column_stride > 1;
  return {view.data,
          stride_of(view, 0),
          is_transposed ? 1 : stride_of(view, 1),
          is_transposed ? column_stride : 1,
          bias.data,
          stride_of(bias, 0),
          scales};
}

float given_or(float value, float otherwise) { return std::isnan(value) ? otherwise : value; }

}  // namespace

FusedExpertsProblem ops::fused_experts_problem(const FusedExpertsArgs& args,
                                               const std::int64_t* symbols) {
  FusedExpertsProblem problem{};
  problem.x = args.x.data;
  problem.topk_weights = args.topk_weights.data;
  problem.topk_ids = args.topk_ids.data;
  problem.expert_map = static_cast<const std::int32_t*>(args.expert_map.data);
  problem.output = args.output.data;
  problem.w13 = weights_of(args.w13, args.w13_bias, scales_of_w13(args, symbols));
  problem.w2 = weights_of(args.w2, args.w2_bias, scales_of_w2(args, symbols));
  problem.x_stride = stride_of(args.x, 0);
  problem.topk_weights_stride = stride_of(args.topk_weights, 0);
  problem.topk_ids_stride = stride_of(args.topk_ids, 0);
  problem.output_stride = stride_of(args.output, 0);
  problem.num_tokens = symbols[kNumTokens];
  problem.hidden_size = symbols[kHiddenSize];
  problem.num_experts = symbols[kNumExperts];
  problem.num_global_experts =
      args.expert_map.given() ? symbols[kNumGlobalExperts] : symbols[kNumExperts];
  problem.intermediate_size = symbols[kIntermediateSize];
  problem.top_k = symbols[kTopK];
  problem.is_x_fp8 = is_fp8(args.x.dtype);
  problem.dtype = !problem.is_x_fp8     ? args.x.dtype
                  : args.output.given() ? args.output.dtype
                                        : DLDataType{kDLBfloat, 16, 1};
  problem.topk_weights_dtype = args.topk_weights.dtype;
  problem.topk_ids_dtype = args.topk_ids.dtype;
  problem.activation = args.activation;
  problem.apply_router_weight_on_input = args.apply_router_weight_on_input;
  problem.batch_invariant = args.batch_invariant;
  problem.swiglu_alpha = given_or(args.swiglu_alpha, kDefaultSwigluAlpha);
  problem.swiglu_beta = given_or(args.swiglu_beta, kDefaultSwigluBeta);
  problem.swiglu_limit = given_or(args.swiglu_limit, kDefaultSwigluLimit);
  problem.use_ue8m0 = args.use_ue8m0;
  problem.x_scale = static_cast<const float*>(args.x_scale.data);
  problem.x_scale_stride = args.x_scale.ndim == 2 ? args.x_scale.shape[1] : 0;
  problem.intermediate_scale = static_cast<const float*>(args.intermediate_scale.data);
  return problem;
}

std::string ops::describe_experts(const FusedExpertsProblem& problem) {
  constexpr const char* kScales[] = {"", ", fp8 with a scale per expert",
                                     ", fp8 with a scale per row", ", fp8 with scales of blocks"};
  return std::to_string(problem.num_tokens) + " tokens, top_k " + std::to_string(problem.top_k) +
         ", " + std::to_string(problem.num_experts) + " experts, hidden size " +
         std::to_string(problem.hidden_size) + ", intermediate size " +
         std::to_string(problem.intermediate_size) + ", " + core::to_string(problem.dtype) + ", " +
         name_of(problem.activation) + kScales[static_cast<std::size_t>(problem.w13.scales.kind)] +
         (problem.is_x_fp8 ? ", x in fp8" : "");
}

namespace {

constexpr core::Op kOp =
    core::make_op<FusedExpertsArgs, FusedExpertsProblem, ops::fused_experts_sizes,
                  ops::fused_experts_problem, ops::describe_experts, ops::good_scales>(
        kFusedExpertsSchema, kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kFusedExperts = core::make_entry<FusedExpertsArgs, kOp>();

Status fused_experts_workspace_bytes(const FusedExpertsArgs& args, const Context& context,
                                     std::size_t* bytes) {
  OpSizes found;
  Status status = core::sizes(kOp, &args, context, &found);
  if (status.ok()) *bytes = found.workspace_bytes;
  return status;
}

Status fused_experts(const FusedExpertsArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

}  // namespace tessera
