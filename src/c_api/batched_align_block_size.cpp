// batched_align_block_size in the C API: builds views from pointers and lengths for the C++ one.
#include "tessera/batched_align_block_size.hpp"

#include "c_api/conversions.hpp"

namespace {

using namespace tessera::c_api;
using tessera::Status;

constexpr const char* kOp = "batched_align_block_size";
constexpr tessera::core::OutOfMemory kOutOfMemory(kOp);

Status query(const tessera_batched_align_block_size_args* args,
             tessera_batched_align_block_size_sizes* sizes) {
  if (Status s = check_struct(kOp, "args", args); !s.ok()) return s;
  if (Status s = check_struct(kOp, "sizes", sizes); !s.ok()) return s;
  tessera::BatchedAlignBlockSizeSizes result;
  Status status = tessera::batched_align_block_size_sizes(
      {args->num_batches, args->max_tokens_per_batch, args->block_size}, &result);
  if (status.ok()) {
    sizes->sorted_token_ids_length = result.sorted_token_ids;
    sizes->expert_ids_length = result.expert_ids;
  }
  return status;
}

Status run(const tessera_batched_align_block_size_args* args) {
  if (Status s = check_struct(kOp, "args", args); !s.ok()) return s;
  tessera::Context context;
  if (Status s = set_device(kOp, args->device_type, args->device_id, &context); !s.ok()) return s;
  context.stream = args->stream;
  const DLDevice device = context.device;
  tessera::BatchedAlignBlockSizeArgs call;
  call.expert_num_tokens = view_of(args->expert_num_tokens, args->num_batches, device);
  call.max_tokens_per_batch = args->max_tokens_per_batch;
  call.block_size = args->block_size;
  call.tail_expert = args->tail_expert;
  call.sorted_token_ids = view_of(args->sorted_token_ids, args->sorted_token_ids_length, device);
  call.expert_ids = view_of(args->expert_ids, args->expert_ids_length, device);
  call.num_tokens_post_pad = view_of(args->num_tokens_post_pad, 1, device);
  return tessera::batched_align_block_size(call, context);
}

}  // namespace

extern "C" {

tessera_status tessera_batched_align_block_size_query(
    const tessera_batched_align_block_size_args* args,
    tessera_batched_align_block_size_sizes* sizes) {
  return finish(kOutOfMemory, [&] { return query(args, sizes); });
}

tessera_status tessera_batched_align_block_size(const tessera_batched_align_block_size_args* args) {
  return finish(kOutOfMemory, [&] { return run(args); });
}

}  // extern "C"
