// moe_sum: its arguments as implementations take them.
#include "tessera/moe_sum.hpp"

#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/layout.hpp"
#include "core/moe_sum_problem.hpp"
#include "core/op.hpp"
#include "ops/ops.hpp"

namespace tessera {
namespace {

using core::MoeSumProblem;
using namespace moe_sum_schema;

constexpr core::OutOfMemory kOutOfMemory("moe_sum");

bool sizes(const MoeSumArgs&, std::int64_t* symbols, core::Validator* check) {
  return check->in_range("input.shape[1]", symbols[kTopK], 1, kInt32Max);
}

MoeSumProblem make_problem(const MoeSumArgs& args, const std::int64_t* symbols) {
  MoeSumProblem problem{};
  problem.input = args.input.data;
  problem.topk_weights = static_cast<const float*>(args.topk_weights.data);
  problem.output = args.output.data;
  problem.dtype = args.input.dtype;
  problem.num_tokens = symbols[kNumTokens];
  problem.top_k = symbols[kTopK];
  problem.hidden_size = symbols[kHiddenSize];
  problem.token_stride = core::stride_of(args.input, 0);
  problem.slot_stride = core::stride_of(args.input, 1);
  problem.output_stride = core::stride_of(args.output, 0);
  return problem;
}

std::string describe(const MoeSumProblem& problem) {
  return std::to_string(problem.num_tokens) + " tokens, top_k " + std::to_string(problem.top_k) +
         ", hidden size " + std::to_string(problem.hidden_size) + ", " +
         core::to_string(problem.dtype) + (problem.topk_weights == nullptr ? "" : ", weighted");
}

constexpr core::Op kOp = core::make_op<MoeSumArgs, MoeSumProblem, sizes, make_problem, describe>(
    kMoeSumSchema, kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kMoeSum = core::make_entry<MoeSumArgs, kOp>();

Status moe_sum(const MoeSumArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

}  // namespace tessera
