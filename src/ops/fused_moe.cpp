// fused_moe: its arguments as implementations take them, those of both ops.
#include "tessera/fused_moe.hpp"

#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/fused_moe_problem.hpp"
#include "core/op.hpp"
#include "ops/fused_experts.hpp"
#include "ops/ops.hpp"
#include "ops/select_experts.hpp"

namespace tessera {
namespace {

using core::FusedMoeProblem;
using namespace fused_moe_schema;

constexpr core::OutOfMemory kOutOfMemory("fused_moe");

static_assert(static_cast<int>(kNumGlobalExperts) == fused_experts_schema::kNumGlobalExperts &&
                  static_cast<int>(kTopK) == fused_experts_schema::kTopK,
              "fused_experts has the same symbols");

/// Weights or ids, also where the caller gives no array for them.
TensorView choice(const TensorView& given, DLDataType dtype, const std::int64_t* symbols) {
  return TensorView::of(given.data, dtype, {symbols[kNumTokens], symbols[kTopK]});
}

SelectExpertsArgs selection_of(const FusedMoeArgs& args, const std::int64_t* symbols) {
  SelectExpertsArgs selection = ops::selection_of(args);
  selection.topk_weights = choice(args.topk_weights, {kDLFloat, 32, 1}, symbols);
  selection.topk_ids = choice(args.topk_ids, {kDLInt, 32, 1}, symbols);
  return selection;
}

FusedExpertsArgs experts_of(const FusedMoeArgs& args, const SelectExpertsArgs& selection) {
  return {.x = args.x,
          .w13 = args.w13,
          .w2 = args.w2,
          .topk_weights = selection.topk_weights,
          .topk_ids = selection.topk_ids,
          .expert_map = args.expert_map,
          .w13_bias = args.w13_bias,
          .w2_bias = args.w2_bias,
          .w13_scale = {},
          .w2_scale = {},
          .x_scale = {},
          .intermediate_scale = {},
          .output = args.output,
          .activation = args.activation,
          .apply_router_weight_on_input = args.apply_router_weight_on_input,
          .batch_invariant = args.batch_invariant,
          .swiglu_alpha = args.swiglu_alpha,
          .swiglu_beta = args.swiglu_beta,
          .swiglu_limit = args.swiglu_limit};
}

/// The symbols of select_experts.
struct SelectionSymbols {
  explicit SelectionSymbols(const std::int64_t* symbols) {
    values[select_experts_schema::kNumTokens] = symbols[kNumTokens];
    values[select_experts_schema::kNumExperts] = symbols[kNumGlobalExperts];
    values[select_experts_schema::kTopK] = symbols[kTopK];
  }
  std::int64_t values[kMaxSymbols] = {};
};

bool sizes(const FusedMoeArgs& args, std::int64_t* symbols, core::Validator* check) {
  const SelectExpertsArgs selection = selection_of(args, symbols);
  if (!ops::fused_experts_sizes(experts_of(args, selection), symbols, check)) return false;
  if (!args.expert_map.given()) {
    symbols[kNumGlobalExperts] = symbols[kNumExperts];
  } else if (!check->in_range("expert_map.shape[0]", symbols[kNumGlobalExperts], 1, kInt32Max)) {
    return false;
  }
  SelectionSymbols own(symbols);
  return ops::select_experts_sizes(selection, own.values, check);
}

FusedMoeProblem make_problem(const FusedMoeArgs& args, const std::int64_t* symbols) {
  const SelectExpertsArgs selection = selection_of(args, symbols);
  return {ops::select_experts_problem(selection, SelectionSymbols(symbols).values),
          ops::fused_experts_problem(experts_of(args, selection), symbols)};
}

std::string describe(const FusedMoeProblem& problem) {
  return ops::describe_selection(problem.selection) + "; " + ops::describe_experts(problem.experts);
}

constexpr core::Op kOp =
    core::make_op<FusedMoeArgs, FusedMoeProblem, sizes, make_problem, describe>(kFusedMoeSchema,
                                                                                kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kFusedMoe = core::make_entry<FusedMoeArgs, kOp>();

Status fused_moe_workspace_bytes(const FusedMoeArgs& args, const Context& context,
                                 std::size_t* bytes) {
  OpSizes found;
  Status status = core::sizes(kOp, &args, context, &found);
  if (status.ok()) *bytes = found.workspace_bytes;
  return status;
}

Status fused_moe(const FusedMoeArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

}  // namespace tessera
