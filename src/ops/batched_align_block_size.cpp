// batched_align_block_size: its sizes, and its arguments as implementations take them.
#include "tessera/batched_align_block_size.hpp"

#include <cstdint>
#include <string>

#include "core/batched_align_block_size_problem.hpp"
#include "core/op.hpp"
#include "ops/ops.hpp"

namespace tessera {
namespace {

using core::BatchedAlignBlockSizeProblem;
using namespace batched_align_block_size_schema;

constexpr core::OutOfMemory kOutOfMemory("batched_align_block_size");

bool sizes(const BatchedAlignBlockSizeArgs& args, std::int64_t* symbols, core::Validator* check) {
  const std::int64_t num_batches = symbols[kNumBatches];
  const std::int64_t blocks_per_batch =
      (args.max_tokens_per_batch + args.block_size - 1) / args.block_size;
  symbols[kNumBlocks] = num_batches * blocks_per_batch;
  // A batch's slots are fewer than 2^32: no overflow in 64 bits.
  symbols[kCapacity] = num_batches * (blocks_per_batch * args.block_size);
  return symbols[kCapacity] <= kInt32Max ||
         check->fail(StatusCode::kInvalidValue, "capacity", "at most 2147483647 slots",
                     std::to_string(symbols[kCapacity]) + " (" + std::to_string(num_batches) +
                         " batches * max_tokens_per_batch " +
                         std::to_string(args.max_tokens_per_batch) +
                         " rounded up to whole blocks of " + std::to_string(args.block_size) + ")");
}

BatchedAlignBlockSizeProblem make_problem(const BatchedAlignBlockSizeArgs& args,
                                          const std::int64_t* symbols) {
  BatchedAlignBlockSizeProblem problem{};
  problem.expert_num_tokens = static_cast<const std::int32_t*>(args.expert_num_tokens.data);
  problem.num_batches = static_cast<std::int32_t>(symbols[kNumBatches]);
  problem.max_tokens_per_batch = static_cast<std::int32_t>(args.max_tokens_per_batch);
  problem.block_size = static_cast<std::int32_t>(args.block_size);
  problem.tail_expert = args.tail_expert;
  problem.filler = static_cast<std::int32_t>(symbols[kNumBatches] * args.max_tokens_per_batch);
  problem.capacity = static_cast<std::int32_t>(symbols[kCapacity]);
  problem.sorted_token_ids = static_cast<std::int32_t*>(args.sorted_token_ids.data);
  problem.sorted_token_ids_length = args.sorted_token_ids.num_elements;
  problem.expert_ids = static_cast<std::int32_t*>(args.expert_ids.data);
  problem.expert_ids_length = args.expert_ids.num_elements;
  problem.num_tokens_post_pad = static_cast<std::int32_t*>(args.num_tokens_post_pad.data);
  return problem;
}

std::string describe(const BatchedAlignBlockSizeProblem& problem) {
  return std::to_string(problem.num_batches) + " batches, max_tokens_per_batch " +
         std::to_string(problem.max_tokens_per_batch) + ", block_size " +
         std::to_string(problem.block_size);
}

constexpr core::Op kOp =
    core::make_op<BatchedAlignBlockSizeArgs, BatchedAlignBlockSizeProblem, sizes, make_problem,
                  describe>(kBatchedAlignBlockSizeSchema, kOutOfMemory);

}  // namespace

constinit const OpEntry ops::kBatchedAlignBlockSize =
    core::make_entry<BatchedAlignBlockSizeArgs, kOp>();

Status batched_align_block_size(const BatchedAlignBlockSizeArgs& args, const Context& context) {
  return core::call(kOp, &args, context);
}

Status batched_align_block_size_sizes(const BatchedAlignBlockSizeShape& shape,
                                      BatchedAlignBlockSizeSizes* sizes) {
  BatchedAlignBlockSizeArgs args;
  args.expert_num_tokens.num_elements = shape.num_batches;
  args.max_tokens_per_batch = shape.max_tokens_per_batch;
  args.block_size = shape.block_size;
  OpSizes found;
  if (Status s = core::sizes(kOp, &args, Context{}, &found); !s.ok()) return s;
  *sizes = {found.symbols[kCapacity], found.symbols[kNumBlocks]};
  return {};
}

}  // namespace tessera
