// Python's exports of batched_align_block_size.
#include "tessera/batched_align_block_size.hpp"

#include <string>

#include "batched_align_block_size_checker.hpp"
#include "conversions.hpp"

namespace tessera::python {
namespace {

constexpr const char* kOp = "batched_align_block_size";

/// All but the outputs.
BatchedAlignBlockSizeArgs batched_args(const ffi::TensorView& expert_num_tokens,
                                       std::int64_t max_tokens_per_batch, std::int64_t block_size,
                                       std::int64_t tail_expert) {
  BatchedAlignBlockSizeArgs args;
  args.expert_num_tokens = view_of(expert_num_tokens);
  args.max_tokens_per_batch = max_tokens_per_batch;
  args.block_size = block_size;
  args.tail_expert = int32_of(kOp, "tail_expert", tail_expert);
  return args;
}

/// On a device, on the stream that the framework of the arrays has made current.
void run(const BatchedAlignBlockSizeArgs& args) {
  Context context;
  context.device = args.expert_num_tokens.device;
  context.stream = current_stream(context.device);
  throw_unless_ok(batched_align_block_size(args, context));
}

void batched_align_block_size(const ffi::TensorView& expert_num_tokens,
                              const ffi::TensorView& sorted_token_ids,
                              const ffi::TensorView& expert_ids,
                              const ffi::TensorView& num_tokens_post_pad,
                              std::int64_t max_tokens_per_batch, std::int64_t block_size,
                              std::int64_t tail_expert) {
  BatchedAlignBlockSizeArgs args =
      batched_args(expert_num_tokens, max_tokens_per_batch, block_size, tail_expert);
  set_outputs(sorted_token_ids, expert_ids, num_tokens_post_pad, &args);
  run(args);
}

/// The same with the three outputs in one array.
void batched_align_block_size_joined(const ffi::TensorView& expert_num_tokens,
                                     const ffi::TensorView& outputs, std::int64_t num_slots,
                                     std::int64_t num_blocks, std::int64_t max_tokens_per_batch,
                                     std::int64_t block_size, std::int64_t tail_expert) {
  BatchedAlignBlockSizeArgs args =
      batched_args(expert_num_tokens, max_tokens_per_batch, block_size, tail_expert);
  set_joined_outputs(outputs, num_slots, num_blocks, &args);
  run(args);
}

/// Writes what write_joined_sizes says to `sizes`, int64[5].
void batched_align_block_size_sizes(std::int64_t num_batches, std::int64_t max_tokens_per_batch,
                                    std::int64_t block_size, const ffi::TensorView& sizes) {
  BatchedAlignBlockSizeSizes found;
  throw_unless_ok(
      batched_align_block_size_sizes({num_batches, max_tokens_per_batch, block_size}, &found));
  write_joined_sizes(found.sorted_token_ids, found.expert_ids, 1,
                     static_cast<std::int64_t*>(sizes.data_ptr()));
}

std::string batched_align_block_size_check(const ffi::TensorView& expert_num_tokens,
                                           const ffi::TensorView& sorted_token_ids,
                                           const ffi::TensorView& expert_ids,
                                           const ffi::TensorView& num_tokens_post_pad,
                                           std::int64_t max_tokens_per_batch,
                                           std::int64_t block_size, std::int64_t tail_expert) {
  BatchedAlignBlockSizeArgs args =
      batched_args(expert_num_tokens, max_tokens_per_batch, block_size, tail_expert);
  set_outputs(sorted_token_ids, expert_ids, num_tokens_post_pad, &args);
  return violations_json(contract::check_batched_align_block_size(args));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(batched_align_block_size, batched_align_block_size)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(batched_align_block_size_joined, batched_align_block_size_joined)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(batched_align_block_size_sizes, batched_align_block_size_sizes)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(batched_align_block_size_check, batched_align_block_size_check)

}  // namespace tessera::python
