// select_and_align: its sizes, and its arguments as implementations take them.
#include "tessera/select_and_align.hpp"

#include <cstdint>
#include <string>

#include "core/op.hpp"
#include "core/select_and_align_problem.hpp"
#include "ops/align_block_size_sizes.hpp"
#include "ops/ops.hpp"
#include "ops/select_experts.hpp"

namespace tessera {
namespace {

using core::AlignBlockSizeProblem;
using core::SelectAndAlignProblem;
using namespace select_and_align_schema;

constexpr core::OutOfMemory kOutOfMemory("select_and_align");

static_assert(static_cast<int>(kNumTokens) == select_experts_schema::kNumTokens &&
                  static_cast<int>(kNumExperts) == select_experts_schema::kNumExperts &&
                  static_cast<int>(kTopK) == select_experts_schema::kTopK,
              "select_experts has the same symbols");

bool sizes(const SelectAndAlignArgs& args, std::int64_t* symbols, core::Validator* check) {
  const std::int64_t num_experts = symbols[kNumExperts];
  if (!check->in_range("router_logits.shape[1]", num_experts, 1, kAlignBlockSizeMaxExperts) ||
      !ops::select_experts_sizes(ops::selection_of(args), symbols, check)) {
    return false;
  }
  const std::int64_t num_pairs = symbols[kNumTokens] * args.top_k;  // below 2^61
  if (num_pairs > kInt32Max) {
    return check->fail(StatusCode::kInvalidValue, "topk_ids", "at most 2147483647 ids",
                       std::to_string(num_pairs));
  }
  return ops::output_sizes({num_pairs, args.block_size, num_experts, args.pad_sorted_ids}, check,
                           &symbols[kCapacity], &symbols[kNumBlocks]);
}

AlignBlockSizeProblem alignment_of(const SelectAndAlignArgs& args, const std::int64_t* symbols) {
  AlignBlockSizeProblem problem{};
  problem.topk_ids = args.topk_ids.data;
  problem.id_dtype = {kDLInt, 32, 1};
  problem.num_ids = static_cast<std::int32_t>(symbols[kNumTokens] * args.top_k);
  problem.block_size = static_cast<std::int32_t>(args.block_size);
  problem.num_experts = static_cast<std::int32_t>(symbols[kNumExperts]);
  problem.expert_map = static_cast<const std::int32_t*>(args.expert_map.data);
  problem.drops_remote = args.expert_map.given() && args.ignore_invalid_experts;
  problem.tail_expert = -1;
  problem.sorted_token_ids = static_cast<std::int32_t*>(args.sorted_token_ids.data);
  problem.sorted_token_ids_length = args.sorted_token_ids.num_elements;
  problem.expert_ids = static_cast<std::int32_t*>(args.expert_ids.data);
  problem.expert_ids_length = args.expert_ids.num_elements;
  problem.num_tokens_post_pad = static_cast<std::int32_t*>(args.num_tokens_post_pad.data);
  problem.expert_counts = static_cast<std::int32_t*>(args.expert_counts.data);
  problem.statistics = static_cast<double*>(args.statistics.data);
  return problem;
}

SelectAndAlignProblem make_problem(const SelectAndAlignArgs& args, const std::int64_t* symbols) {
  return {ops::select_experts_problem(ops::selection_of(args), symbols),
          alignment_of(args, symbols)};
}

std::string describe(const SelectAndAlignProblem& problem) {
  return ops::describe_selection(problem.selection) + ", block_size " +
         std::to_string(problem.alignment.block_size);
}

constexpr core::Op kOp =
    core::make_op<SelectAndAlignArgs, SelectAndAlignProblem, sizes, make_problem, describe>(
        kSelectAndAlignSchema, kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kSelectAndAlign = core::make_entry<SelectAndAlignArgs, kOp>();

Status select_and_align_sizes(const SelectAndAlignArgs& args, const Context& context,
                              AlignBlockSizeSizes* sizes) {
  OpSizes found;
  if (Status s = core::sizes(kOp, &args, context, &found); !s.ok()) return s;
  *sizes = {found.symbols[kCapacity], found.symbols[kNumBlocks], found.workspace_bytes};
  return {};
}

Status select_and_align(const SelectAndAlignArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

}  // namespace tessera
