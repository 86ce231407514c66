// batched_align_block_size: validates a call once, for every backend, and hands it to one.
#include "tessera/batched_align_block_size.hpp"

#include <string>

#include "core/backend.hpp"
#include "core/batched_align_block_size_implementation.hpp"
#include "core/dispatch.hpp"
#include "core/errors.hpp"
#include "core/validation.hpp"

namespace tessera {
namespace {

using core::kInt32Max;
using core::Validator;

constexpr std::string_view kOp = "batched_align_block_size";
constexpr core::OutOfMemory kOutOfMemory(kOp);

/// Checks the shape and computes the output sizes, all of them within int32.
bool output_sizes(const BatchedAlignBlockSizeShape& shape, Validator* check,
                  BatchedAlignBlockSizeSizes* sizes) {
  if (!check->in_range("max_tokens_per_batch", shape.max_tokens_per_batch, 0, kInt32Max) ||
      !check->in_range("block_size", shape.block_size, 1, kInt32Max) ||
      !check->in_range("expert_num_tokens.num_elements", shape.num_batches, 0, kInt32Max)) {
    return false;
  }
  const std::int64_t blocks_per_batch =
      (shape.max_tokens_per_batch + shape.block_size - 1) / shape.block_size;
  sizes->expert_ids = shape.num_batches * blocks_per_batch;
  // A batch's slots are fewer than 2^32: no overflow in 64 bits.
  sizes->sorted_token_ids = shape.num_batches * (blocks_per_batch * shape.block_size);
  return sizes->sorted_token_ids <= kInt32Max ||
         check->fail(
             StatusCode::kInvalidValue, "capacity", "at most 2147483647 slots",
             std::to_string(sizes->sorted_token_ids) + " (" + std::to_string(shape.num_batches) +
                 " batches * max_tokens_per_batch " + std::to_string(shape.max_tokens_per_batch) +
                 " rounded up to whole blocks of " + std::to_string(shape.block_size) + ")");
}

}  // namespace

Status batched_align_block_size_sizes(const BatchedAlignBlockSizeShape& shape,
                                      BatchedAlignBlockSizeSizes* sizes) try {
  const Context context;
  Validator check(kOp, context);
  BatchedAlignBlockSizeSizes result;
  if (!output_sizes(shape, &check, &result)) return check.status;
  *sizes = result;
  return {};
} catch (...) {
  return kOutOfMemory.status();
}

Status batched_align_block_size(const BatchedAlignBlockSizeArgs& args, const Context& context) try {
  if (Status s = core::check_context(kOp, context); !s.ok()) return s;
  Validator check(kOp, context);
  BatchedAlignBlockSizeSizes sizes;
  const std::int64_t num_batches = args.expert_num_tokens.num_elements;
  const core::NamedView outputs[] = {{"sorted_token_ids", args.sorted_token_ids},
                                     {"expert_ids", args.expert_ids},
                                     {"num_tokens_post_pad", args.num_tokens_post_pad}};
  const core::NamedView inputs[] = {{"expert_num_tokens", args.expert_num_tokens}};
  if (!check.int32_array("expert_num_tokens", args.expert_num_tokens, num_batches) ||
      !output_sizes({num_batches, args.max_tokens_per_batch, args.block_size}, &check, &sizes) ||
      !check.int32_buffer("sorted_token_ids", args.sorted_token_ids, sizes.sorted_token_ids) ||
      !check.int32_buffer("expert_ids", args.expert_ids, sizes.expert_ids) ||
      !check.int32_array("num_tokens_post_pad", args.num_tokens_post_pad, 1) ||
      !check.no_overlap(outputs, inputs)) {
    return check.status;
  }
  std::string why_not;
  const core::Backend* const backend = core::find_backend(context.device.device_type, &why_not);
  if (backend == nullptr) return core::nothing_to_run(kOp, context, {});

  core::BatchedAlignBlockSizeProblem problem{};
  problem.expert_num_tokens = static_cast<const std::int32_t*>(args.expert_num_tokens.data);
  problem.num_batches = static_cast<std::int32_t>(num_batches);
  problem.max_tokens_per_batch = static_cast<std::int32_t>(args.max_tokens_per_batch);
  problem.block_size = static_cast<std::int32_t>(args.block_size);
  problem.tail_expert = args.tail_expert;
  problem.filler = static_cast<std::int32_t>(num_batches * args.max_tokens_per_batch);
  problem.capacity = static_cast<std::int32_t>(sizes.sorted_token_ids);
  problem.sorted_token_ids = static_cast<std::int32_t*>(args.sorted_token_ids.data);
  problem.sorted_token_ids_length = args.sorted_token_ids.num_elements;
  problem.expert_ids = static_cast<std::int32_t*>(args.expert_ids.data);
  problem.expert_ids_length = args.expert_ids.num_elements;
  problem.num_tokens_post_pad = static_cast<std::int32_t*>(args.num_tokens_post_pad.data);
  return backend->batched_align_block_size(problem, context);
} catch (...) {
  return kOutOfMemory.status();
}

}  // namespace tessera
