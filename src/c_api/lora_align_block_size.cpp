// lora_align_block_size in the C API: builds views from pointers and lengths for the C++ one.
#include "tessera/lora_align_block_size.hpp"

#include "c_api/conversions.hpp"

namespace {

using namespace tessera::c_api;
using tessera::Status;

constexpr const char* kOp = "lora_align_block_size";
constexpr tessera::core::OutOfMemory kOutOfMemory(kOp);

Status query(const tessera_lora_align_block_size_args* args,
             tessera_lora_align_block_size_sizes* sizes) {
  if (Status s = check_struct(kOp, "args", args); !s.ok()) return s;
  if (Status s = check_struct(kOp, "sizes", sizes); !s.ok()) return s;
  tessera::Context context;
  if (Status s = make_context(kOp, *args, &context); !s.ok()) return s;
  tessera::LoraAlignBlockSizeSizes row;
  Status status =
      tessera::lora_align_block_size_sizes({args->num_ids, args->block_size, args->num_experts,
                                            args->max_loras, args->pad_sorted_ids != 0},
                                           context, &row);
  if (status.ok()) {
    sizes->sorted_token_ids_length = args->max_loras * row.sorted_token_ids;
    sizes->expert_ids_length = args->max_loras * row.expert_ids;
    sizes->workspace_bytes = row.workspace_bytes;
  }
  return status;
}

Status run(const tessera_lora_align_block_size_args* args) {
  if (Status s = check_struct(kOp, "args", args); !s.ok()) return s;
  tessera::Context context;
  if (Status s = make_context(kOp, *args, &context); !s.ok()) return s;
  const DLDevice device = context.device;
  tessera::LoraAlignBlockSizeArgs call;
  if (Status s = integer_view(kOp, "topk_ids_dtype", args->topk_ids, args->topk_ids_dtype,
                              args->num_ids, device, &call.topk_ids);
      !s.ok()) {
    return s;
  }
  call.top_k = args->top_k;
  // The op refuses any other top_k before it looks at the mapping.
  const std::int64_t num_tokens = args->top_k < 1 ? 0 : args->num_ids / args->top_k;
  call.token_lora_mapping = view_of(args->token_lora_mapping, num_tokens, device);
  call.block_size = args->block_size;
  call.num_experts = args->num_experts;
  call.max_loras = args->max_loras;
  call.adapter_enabled = optional_view(args->adapter_enabled, args->max_loras, device);
  call.lora_ids = optional_view(args->lora_ids, args->num_lora_ids, device);
  call.expert_map = optional_view(args->expert_map, args->num_experts, device);
  call.pad_sorted_ids = args->pad_sorted_ids != 0;
  call.tail_expert = args->tail_expert;
  call.sorted_token_ids = view_of(args->sorted_token_ids, args->sorted_token_ids_length, device);
  call.expert_ids = view_of(args->expert_ids, args->expert_ids_length, device);
  call.num_tokens_post_pad = view_of(args->num_tokens_post_pad, args->max_loras, device);
  return tessera::lora_align_block_size(call, context);
}

}  // namespace

extern "C" {

tessera_status tessera_lora_align_block_size_query(const tessera_lora_align_block_size_args* args,
                                                   tessera_lora_align_block_size_sizes* sizes) {
  return finish(kOutOfMemory, [&] { return query(args, sizes); });
}

tessera_status tessera_lora_align_block_size(const tessera_lora_align_block_size_args* args) {
  return finish(kOutOfMemory, [&] { return run(args); });
}

}  // extern "C"
