// moe_permute: its sizes, and its arguments as implementations take them.
#include "tessera/moe_permute.hpp"

#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/layout.hpp"
#include "core/moe_permute_problem.hpp"
#include "core/op.hpp"
#include "ops/align_block_size_sizes.hpp"
#include "ops/ops.hpp"

namespace tessera {
namespace {

using core::MoePermuteProblem;
using namespace moe_permute_schema;

constexpr core::OutOfMemory kOutOfMemory("moe_permute");

bool sizes(const MoePermuteArgs& args, std::int64_t* symbols, core::Validator* check) {
  if (!check->in_range("topk_ids.shape[1]", symbols[kTopK], 1, kInt32Max)) return false;
  const std::int64_t num_pairs = symbols[kNumTokens] * symbols[kTopK];  // below 2^62
  if (num_pairs > kInt32Max) {
    return check->fail(StatusCode::kInvalidValue, "topk_ids", "at most 2147483647 ids",
                       std::to_string(num_pairs));
  }
  symbols[kNumOffsets] = args.num_experts + 1;
  std::int64_t num_blocks = 0;
  return ops::output_sizes({num_pairs, args.block_size, args.num_experts}, check,
                           &symbols[kCapacity], &num_blocks);
}

MoePermuteProblem make_problem(const MoePermuteArgs& args, const std::int64_t* symbols) {
  MoePermuteProblem problem{};
  problem.x = args.x.data;
  problem.topk_ids = args.topk_ids.data;
  problem.expert_map = static_cast<const std::int32_t*>(args.expert_map.data);
  problem.has_map = args.expert_map.given();
  problem.rows = args.rows.data;
  problem.expert_offsets = static_cast<std::int32_t*>(args.expert_offsets.data);
  problem.inverse = static_cast<std::int32_t*>(args.inverse.data);
  problem.dtype = args.x.dtype;
  problem.topk_ids_dtype = args.topk_ids.dtype;
  problem.num_tokens = symbols[kNumTokens];
  problem.top_k = symbols[kTopK];
  problem.hidden_size = symbols[kHiddenSize];
  problem.num_experts = symbols[kNumExperts];
  problem.num_global_experts = problem.has_map ? symbols[kNumGlobalExperts] : symbols[kNumExperts];
  problem.block_size = args.block_size;
  problem.capacity = symbols[kCapacity];
  problem.x_stride = core::stride_of(args.x, 0);
  problem.rows_stride = core::stride_of(args.rows, 0);
  return problem;
}

std::string describe(const MoePermuteProblem& problem) {
  return std::to_string(problem.num_tokens) + " tokens, top_k " + std::to_string(problem.top_k) +
         ", " + std::to_string(problem.num_experts) + " experts, block_size " +
         std::to_string(problem.block_size) + ", hidden size " +
         std::to_string(problem.hidden_size) + ", " + core::to_string(problem.dtype) +
         (problem.has_map ? ", with a map" : "");
}

constexpr core::Op kOp =
    core::make_op<MoePermuteArgs, MoePermuteProblem, sizes, make_problem, describe>(
        kMoePermuteSchema, kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kMoePermute = core::make_entry<MoePermuteArgs, kOp>();

Status moe_permute_sizes(const MoePermuteArgs& args, const Context& context,
                         MoePermuteSizes* sizes) {
  OpSizes found;
  if (Status s = core::sizes(kOp, &args, context, &found); !s.ok()) return s;
  *sizes = {found.symbols[kCapacity], found.workspace_bytes};
  return {};
}

Status moe_permute(const MoePermuteArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

}  // namespace tessera
