// lora_align_block_size: its sizes, and its arguments as implementations take them.
#include "tessera/lora_align_block_size.hpp"

#include <cstdint>
#include <string>

#include "core/lora_align_block_size_problem.hpp"
#include "core/op.hpp"
#include "ops/align_block_size_sizes.hpp"
#include "ops/ops.hpp"

namespace tessera {
namespace {

using core::LoraAlignBlockSizeProblem;
using core::Validator;
using namespace lora_align_block_size_schema;

constexpr core::OutOfMemory kOutOfMemory("lora_align_block_size");

bool sizes(const LoraAlignBlockSizeArgs& args, std::int64_t* symbols, Validator* check) {
  const std::int64_t num_ids = symbols[kNumIds];
  std::int64_t row_capacity = 0;
  std::int64_t row_blocks = 0;
  if (!ops::output_sizes({num_ids, args.block_size, args.num_experts, args.pad_sorted_ids}, check,
                         &row_capacity, &row_blocks)) {
    return false;
  }
  if (num_ids % args.top_k != 0) {
    return check->fail(StatusCode::kInvalidValue, "top_k",
                       "a divisor of topk_ids.num_elements, " + std::to_string(num_ids),
                       std::to_string(args.top_k));
  }
  symbols[kNumTokens] = num_ids / args.top_k;
  // Below 2^51: no overflow in 64 bits.
  symbols[kCapacity] = args.max_loras * row_capacity;
  symbols[kNumBlocks] = args.max_loras * row_blocks;
  return true;
}

/// An output of one row for each adapter.
bool has_equal_rows(const char* name, const TensorView& view, std::int64_t max_loras,
                    Validator* check) {
  return view.num_elements % max_loras == 0 ||
         check->fail(StatusCode::kInvalidValue, std::string(name) + ".num_elements",
                     "a multiple of " + std::to_string(max_loras) + ", a row for each adapter",
                     std::to_string(view.num_elements));
}

bool rules(const LoraAlignBlockSizeArgs& args, const std::int64_t*, Validator* check) {
  return has_equal_rows("sorted_token_ids", args.sorted_token_ids, args.max_loras, check) &&
         has_equal_rows("expert_ids", args.expert_ids, args.max_loras, check);
}

LoraAlignBlockSizeProblem make_problem(const LoraAlignBlockSizeArgs& args, const std::int64_t*) {
  const auto int32s = [](const TensorView& view) { return static_cast<std::int32_t*>(view.data); };
  LoraAlignBlockSizeProblem problem{};
  core::AlignBlockSizeProblem& row = problem.first_row;
  row.topk_ids = args.topk_ids.data;
  row.id_dtype = args.topk_ids.dtype;
  row.num_ids = static_cast<std::int32_t>(args.topk_ids.num_elements);
  row.block_size = static_cast<std::int32_t>(args.block_size);
  row.num_experts = static_cast<std::int32_t>(args.num_experts);
  row.expert_map = int32s(args.expert_map);
  row.drops_remote = args.expert_map.given();
  row.tail_expert = args.tail_expert;
  row.sorted_token_ids = int32s(args.sorted_token_ids);
  row.sorted_token_ids_length = args.sorted_token_ids.num_elements / args.max_loras;
  row.expert_ids = int32s(args.expert_ids);
  row.expert_ids_length = args.expert_ids.num_elements / args.max_loras;
  row.num_tokens_post_pad = int32s(args.num_tokens_post_pad);
  problem.top_k = static_cast<std::int32_t>(args.top_k);
  problem.max_loras = static_cast<std::int32_t>(args.max_loras);
  problem.token_lora_mapping = int32s(args.token_lora_mapping);
  problem.adapter_enabled = int32s(args.adapter_enabled);
  problem.has_lora_ids = args.lora_ids.given();
  problem.lora_ids = int32s(args.lora_ids);
  problem.num_lora_ids = args.lora_ids.num_elements;
  return problem;
}

std::string describe(const LoraAlignBlockSizeProblem& problem) {
  const core::AlignBlockSizeProblem& row = problem.first_row;
  return std::to_string(row.num_ids) + " ids, " + std::to_string(row.num_experts) +
         " experts, block_size " + std::to_string(row.block_size) + ", " +
         std::to_string(problem.max_loras) + " adapters";
}

constexpr core::Op kOp =
    core::make_op<LoraAlignBlockSizeArgs, LoraAlignBlockSizeProblem, sizes, make_problem, describe,
                  rules>(kLoraAlignBlockSizeSchema, kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kLoraAlignBlockSize = core::make_entry<LoraAlignBlockSizeArgs, kOp>();

Status lora_align_block_size(const LoraAlignBlockSizeArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

Status lora_align_block_size_sizes(const LoraAlignBlockSizeShape& shape, const Context& context,
                                   LoraAlignBlockSizeSizes* sizes) {
  LoraAlignBlockSizeArgs args;
  args.topk_ids.num_elements = shape.num_ids;
  args.top_k = 1;  // which no size depends on
  args.block_size = shape.block_size;
  args.num_experts = shape.num_experts;
  args.max_loras = shape.max_loras;
  args.pad_sorted_ids = shape.pad_sorted_ids;
  OpSizes found;
  if (Status s = core::sizes(kOp, &args, context, &found); !s.ok()) return s;
  *sizes = {found.symbols[kCapacity] / shape.max_loras, found.symbols[kNumBlocks] / shape.max_loras,
            found.workspace_bytes};
  return {};
}

}  // namespace tessera
