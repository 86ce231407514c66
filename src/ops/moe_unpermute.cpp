// moe_unpermute: its arguments as implementations take them.
#include "tessera/moe_unpermute.hpp"

#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/layout.hpp"
#include "core/moe_unpermute_problem.hpp"
#include "core/op.hpp"
#include "ops/ops.hpp"

namespace tessera {
namespace {

using core::MoeUnpermuteProblem;
using namespace moe_unpermute_schema;

constexpr core::OutOfMemory kOutOfMemory("moe_unpermute");

bool sizes(const MoeUnpermuteArgs&, std::int64_t* symbols, core::Validator* check) {
  return check->in_range("inverse.shape[1]", symbols[kTopK], 1, kInt32Max);
}

MoeUnpermuteProblem make_problem(const MoeUnpermuteArgs& args, const std::int64_t* symbols) {
  MoeUnpermuteProblem problem{};
  problem.rows = args.rows.data;
  problem.topk_weights = static_cast<const float*>(args.topk_weights.data);
  problem.inverse = static_cast<const std::int32_t*>(args.inverse.data);
  problem.output = args.output.data;
  problem.dtype = args.rows.dtype;
  problem.num_rows = symbols[kNumRows];
  problem.num_tokens = symbols[kNumTokens];
  problem.top_k = symbols[kTopK];
  problem.hidden_size = symbols[kHiddenSize];
  problem.row_stride = core::stride_of(args.rows, 0);
  problem.output_stride = core::stride_of(args.output, 0);
  return problem;
}

std::string describe(const MoeUnpermuteProblem& problem) {
  return std::to_string(problem.num_rows) + " rows, " + std::to_string(problem.num_tokens) +
         " tokens, top_k " + std::to_string(problem.top_k) + ", hidden size " +
         std::to_string(problem.hidden_size) + ", " + core::to_string(problem.dtype) +
         (problem.topk_weights == nullptr ? "" : ", weighted");
}

constexpr core::Op kOp =
    core::make_op<MoeUnpermuteArgs, MoeUnpermuteProblem, sizes, make_problem, describe>(
        kMoeUnpermuteSchema, kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kMoeUnpermute = core::make_entry<MoeUnpermuteArgs, kOp>();

Status moe_unpermute(const MoeUnpermuteArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

}  // namespace tessera
