// align_block_size: its sizes, and its arguments as implementations take them.
#include "tessera/align_block_size.hpp"

#include <cstdint>
#include <string>

#include "core/align_block_size_problem.hpp"
#include "core/op.hpp"
#include "ops/align_block_size_sizes.hpp"
#include "ops/ops.hpp"

namespace tessera {
namespace {

using core::AlignBlockSizeProblem;
using namespace align_block_size_schema;

constexpr core::OutOfMemory kOutOfMemory("align_block_size");

AlignBlockSizeShape shape_of(const AlignBlockSizeArgs& args) {
  return {args.topk_ids.num_elements, args.block_size, args.num_experts, args.pad_sorted_ids,
          args.filtered_group};
}

bool sizes(const AlignBlockSizeArgs& args, std::int64_t* symbols, core::Validator* check) {
  return ops::output_sizes(shape_of(args), check, &symbols[kCapacity], &symbols[kNumBlocks]);
}

AlignBlockSizeProblem make_problem(const AlignBlockSizeArgs& args, const std::int64_t*) {
  AlignBlockSizeProblem problem{};
  problem.topk_ids = args.topk_ids.data;
  problem.id_dtype = args.topk_ids.dtype;
  problem.num_ids = static_cast<std::int32_t>(args.topk_ids.num_elements);
  problem.block_size = static_cast<std::int32_t>(args.block_size);
  problem.num_experts = static_cast<std::int32_t>(args.num_experts);
  problem.expert_map = static_cast<const std::int32_t*>(args.expert_map.data);
  problem.drops_remote = args.expert_map.given() && args.ignore_invalid_experts;
  problem.tail_expert = args.tail_expert;
  problem.map_tail = args.expert_map.given() && args.map_tail;
  problem.filtered_group = args.filtered_group;
  problem.sorted_token_ids = static_cast<std::int32_t*>(args.sorted_token_ids.data);
  problem.sorted_token_ids_length = args.sorted_token_ids.num_elements;
  problem.expert_ids = static_cast<std::int32_t*>(args.expert_ids.data);
  problem.expert_ids_length = args.expert_ids.num_elements;
  problem.num_tokens_post_pad = static_cast<std::int32_t*>(args.num_tokens_post_pad.data);
  problem.expert_counts = static_cast<std::int32_t*>(args.expert_counts.data);
  problem.num_dropped = static_cast<std::int32_t*>(args.num_dropped.data);
  problem.statistics = static_cast<double*>(args.statistics.data);
  problem.validation = static_cast<std::int64_t*>(args.validation.data);
  return problem;
}

std::string describe(const AlignBlockSizeProblem& problem) {
  return std::to_string(problem.num_ids) + " ids, " + std::to_string(problem.num_experts) +
         " experts, block_size " + std::to_string(problem.block_size);
}

constexpr core::Op kOp =
    core::make_op<AlignBlockSizeArgs, AlignBlockSizeProblem, sizes, make_problem, describe>(
        kAlignBlockSizeSchema, kOutOfMemory);

AlignBlockSizeArgs args_of(const AlignBlockSizeShape& shape) {
  AlignBlockSizeArgs args;
  args.topk_ids.num_elements = shape.num_ids;
  args.block_size = shape.block_size;
  args.num_experts = shape.num_experts;
  args.pad_sorted_ids = shape.pad_sorted_ids;
  args.filtered_group = shape.filtered_group;
  return args;
}

}  // namespace

constinit const OpEntry ops::kAlignBlockSize = core::make_entry<AlignBlockSizeArgs, kOp>();

Status align_block_size(const AlignBlockSizeArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

Status align_block_size_sizes(const AlignBlockSizeShape& shape, const Context& context,
                              AlignBlockSizeSizes* sizes) {
  const AlignBlockSizeArgs args = args_of(shape);
  OpSizes found;
  if (Status s = core::sizes(kOp, &args, context, &found); !s.ok()) return s;
  *sizes = {found.symbols[kCapacity], found.symbols[kNumBlocks], found.workspace_bytes};
  return {};
}

Status explain_align_block_size(const AlignBlockSizeShape& shape, const Context& context,
                                std::vector<ImplementationReport>* reports) {
  const AlignBlockSizeArgs args = args_of(shape);
  return core::explain(kOp, &args, context, reports);
}

}  // namespace tessera
