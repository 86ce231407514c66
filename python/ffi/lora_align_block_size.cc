// Python's exports of lora_align_block_size.
#include "tessera/lora_align_block_size.hpp"

#include <algorithm>
#include <string>

#include "conversions.hpp"
#include "lora_align_block_size_checker.hpp"

namespace tessera::python {
namespace {

constexpr const char* kOp = "lora_align_block_size";

/// Pairs of a token: the product of all axes of topk_ids but the first. Without pairs it is 1.
std::int64_t top_k_of(const ffi::TensorView& topk_ids) {
  std::int64_t top_k = 1;
  for (int axis = 1; axis < topk_ids.ndim(); ++axis) top_k *= topk_ids.size(axis);
  return std::max<std::int64_t>(top_k, 1);
}

/// All but the outputs.
LoraAlignBlockSizeArgs lora_args(const ffi::TensorView& topk_ids,
                                 const ffi::TensorView& token_lora_mapping,
                                 const OptionalTensor& adapter_enabled,
                                 const OptionalTensor& lora_ids, const OptionalTensor& expert_map,
                                 std::int64_t block_size, std::int64_t num_experts,
                                 std::int64_t max_loras, bool pad_sorted_ids,
                                 std::int64_t tail_expert) {
  LoraAlignBlockSizeArgs args;
  args.topk_ids = view_of(topk_ids);
  args.top_k = top_k_of(topk_ids);
  args.token_lora_mapping = view_of(token_lora_mapping);
  args.adapter_enabled = view_of(adapter_enabled);
  args.lora_ids = view_of(lora_ids);
  args.expert_map = view_of(expert_map);
  args.block_size = block_size;
  args.num_experts = num_experts;
  args.max_loras = max_loras;
  args.pad_sorted_ids = pad_sorted_ids;
  args.tail_expert = int32_of(kOp, "tail_expert", tail_expert);
  return args;
}

LoraAlignBlockSizeSizes row_sizes(const LoraAlignBlockSizeShape& shape, const Context& context) {
  LoraAlignBlockSizeSizes sizes;
  throw_unless_ok(lora_align_block_size_sizes(shape, context, &sizes));
  return sizes;
}

/// On a device, on the stream that the framework of the arrays has made current, and without a
/// workspace; on the host with that of the thread.
void run(const LoraAlignBlockSizeArgs& args) {
  Context context;
  context.device = args.topk_ids.device;
  std::optional<HostWorkspace> host_workspace;
  if (context.device.device_type == kDLCPU) {
    const LoraAlignBlockSizeSizes row =
        row_sizes({args.topk_ids.num_elements, args.block_size, args.num_experts, args.max_loras,
                   args.pad_sorted_ids},
                  context);
    context.workspace = host_workspace.emplace(kOp, row.workspace_bytes).span();
  }
  context.stream = current_stream(context.device);
  throw_unless_ok(lora_align_block_size(args, context));
}

void lora_align_block_size(const ffi::TensorView& topk_ids,
                           const ffi::TensorView& token_lora_mapping,
                           const OptionalTensor& adapter_enabled, const OptionalTensor& lora_ids,
                           const OptionalTensor& expert_map,
                           const ffi::TensorView& sorted_token_ids,
                           const ffi::TensorView& expert_ids,
                           const ffi::TensorView& num_tokens_post_pad, std::int64_t block_size,
                           std::int64_t num_experts, std::int64_t max_loras, bool pad_sorted_ids,
                           std::int64_t tail_expert) {
  LoraAlignBlockSizeArgs args =
      lora_args(topk_ids, token_lora_mapping, adapter_enabled, lora_ids, expert_map, block_size,
                num_experts, max_loras, pad_sorted_ids, tail_expert);
  set_outputs(sorted_token_ids, expert_ids, num_tokens_post_pad, &args);
  run(args);
}

/// The same with the three outputs in one array.
void lora_align_block_size_joined(const ffi::TensorView& topk_ids,
                                  const ffi::TensorView& token_lora_mapping,
                                  const OptionalTensor& adapter_enabled,
                                  const OptionalTensor& lora_ids, const OptionalTensor& expert_map,
                                  const ffi::TensorView& outputs, std::int64_t num_slots,
                                  std::int64_t num_blocks, std::int64_t block_size,
                                  std::int64_t num_experts, std::int64_t max_loras,
                                  bool pad_sorted_ids, std::int64_t tail_expert) {
  LoraAlignBlockSizeArgs args =
      lora_args(topk_ids, token_lora_mapping, adapter_enabled, lora_ids, expert_map, block_size,
                num_experts, max_loras, pad_sorted_ids, tail_expert);
  set_joined_outputs(outputs, num_slots, num_blocks, &args);
  run(args);
}

/// Writes what write_joined_sizes says of all rows together to `sizes`, int64[5].
void lora_align_block_size_sizes(std::int64_t num_ids, std::int64_t block_size,
                                 std::int64_t num_experts, std::int64_t max_loras,
                                 bool pad_sorted_ids, const ffi::TensorView& sizes) {
  const LoraAlignBlockSizeSizes row =
      row_sizes({num_ids, block_size, num_experts, max_loras, pad_sorted_ids}, Context{});
  write_joined_sizes(max_loras * row.sorted_token_ids, max_loras * row.expert_ids, max_loras,
                     static_cast<std::int64_t*>(sizes.data_ptr()));
}

std::string lora_align_block_size_check(
    const ffi::TensorView& topk_ids, const ffi::TensorView& token_lora_mapping,
    const OptionalTensor& adapter_enabled, const OptionalTensor& lora_ids,
    const OptionalTensor& expert_map, const ffi::TensorView& sorted_token_ids,
    const ffi::TensorView& expert_ids, const ffi::TensorView& num_tokens_post_pad,
    std::int64_t block_size, std::int64_t num_experts, std::int64_t max_loras, bool pad_sorted_ids,
    std::int64_t tail_expert) {
  LoraAlignBlockSizeArgs args =
      lora_args(topk_ids, token_lora_mapping, adapter_enabled, lora_ids, expert_map, block_size,
                num_experts, max_loras, pad_sorted_ids, tail_expert);
  set_outputs(sorted_token_ids, expert_ids, num_tokens_post_pad, &args);
  return violations_json(contract::check_lora_align_block_size(args));
}

}  // namespace

TVM_FFI_DLL_EXPORT_TYPED_FUNC(lora_align_block_size, lora_align_block_size)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(lora_align_block_size_joined, lora_align_block_size_joined)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(lora_align_block_size_sizes, lora_align_block_size_sizes)
TVM_FFI_DLL_EXPORT_TYPED_FUNC(lora_align_block_size_check, lora_align_block_size_check)

}  // namespace tessera::python
