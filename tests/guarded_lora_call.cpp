#include "guarded_lora_call.hpp"

#include <algorithm>

namespace tessera::test {

using contract::LoraAlignBlockSizeCase;

LoraLengths::LoraLengths(const LoraAlignBlockSizeCase& c) {
  const std::int64_t num_ids = c.pairs.num_tokens * c.pairs.top_k;
  const std::int64_t block_size = c.pairs.block_size;
  std::int64_t capacity = num_ids + std::min(num_ids, c.pairs.num_experts) * (block_size - 1);
  const std::int64_t num_blocks = (capacity + block_size - 1) / block_size;
  if (c.pairs.pad_sorted_ids) capacity = num_blocks * block_size;
  sorted_token_ids = c.max_loras * (capacity + c.pairs.extra_length);
  expert_ids = c.max_loras * (num_blocks + c.pairs.extra_length);
}

GuardedLoraCall::GuardedLoraCall(const LoraAlignBlockSizeCase& c, std::uint64_t seed)
    : inputs_(contract::make_inputs(c, seed)) {
  const auto input = [](const std::vector<std::int32_t>& contents, TensorView* view) {
    auto buffer =
        std::make_unique<GuardedBuffer<std::int32_t>>(std::span<const std::int32_t>(contents));
    *view = TensorView::of(buffer->span());
    return buffer;
  };
  const auto output = [](std::int64_t length, TensorView* view) {
    auto buffer = std::make_unique<GuardedBuffer<std::int32_t>>(length);
    *view = TensorView::of(buffer->span());
    return buffer;
  };
  // At any address that elements of the type may have.
  topk_ids_ = std::make_unique<GuardedBuffer<std::byte>>(
      std::span<const std::byte>(inputs_.pairs.topk_ids), seed / 2 % 8 * (c.pairs.dtype.bits / 8U));
  workspace_misalignment_ = seed % 64;
  args.topk_ids.data = topk_ids_->data();
  args.topk_ids.num_elements = c.pairs.num_tokens * c.pairs.top_k;
  args.topk_ids.dtype = c.pairs.dtype;
  args.top_k = c.pairs.top_k;
  token_lora_mapping_ = input(inputs_.token_lora_mapping, &args.token_lora_mapping);
  if (inputs_.adapter_enabled) {
    adapter_enabled_ = input(*inputs_.adapter_enabled, &args.adapter_enabled);
  }
  if (inputs_.lora_ids) lora_ids_ = input(*inputs_.lora_ids, &args.lora_ids);
  if (inputs_.pairs.expert_map) expert_map_ = input(*inputs_.pairs.expert_map, &args.expert_map);
  args.block_size = c.pairs.block_size;
  args.num_experts = c.pairs.num_experts;
  args.max_loras = c.max_loras;
  args.pad_sorted_ids = c.pairs.pad_sorted_ids;
  args.tail_expert = c.pairs.tail_expert;
  const LoraLengths lengths(c);
  sorted_token_ids_ = output(lengths.sorted_token_ids, &args.sorted_token_ids);
  expert_ids_ = output(lengths.expert_ids, &args.expert_ids);
  num_tokens_post_pad_ = output(c.max_loras, &args.num_tokens_post_pad);
}

Status GuardedLoraCall::run() {
  Context context;
  LoraAlignBlockSizeSizes sizes;
  const LoraAlignBlockSizeShape shape{args.topk_ids.num_elements, args.block_size, args.num_experts,
                                      args.max_loras, args.pad_sorted_ids};
  if (Status s = lora_align_block_size_sizes(shape, context, &sizes); !s.ok()) return s;
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes),
                                     workspace_misalignment_);
  context.workspace = workspace.span();
  const Status status = lora_align_block_size(args, context);
  workspace_intact_ = workspace_intact_ && workspace.intact();
  return status;
}

void GuardedLoraCall::poison_outputs(std::byte value) {
  for (Int32s* output : {&sorted_token_ids_, &expert_ids_, &num_tokens_post_pad_}) {
    (*output)->poison(value);
  }
}

bool GuardedLoraCall::outputs_untouched() const {
  return sorted_token_ids_->untouched() && expert_ids_->untouched() &&
         num_tokens_post_pad_->untouched();
}

std::string GuardedLoraCall::damage() const {
  const auto changed = [](const Int32s& buffer, const std::vector<std::int32_t>& contents) {
    return !buffer->intact() || !std::ranges::equal(buffer->span(), contents);
  };
  if (!workspace_intact_) return "workspace";
  if (!topk_ids_->intact() || !std::ranges::equal(topk_ids_->span(), inputs_.pairs.topk_ids)) {
    return "topk_ids";
  }
  if (changed(token_lora_mapping_, inputs_.token_lora_mapping)) return "token_lora_mapping";
  if (adapter_enabled_ && changed(adapter_enabled_, *inputs_.adapter_enabled)) {
    return "adapter_enabled";
  }
  if (lora_ids_ && changed(lora_ids_, *inputs_.lora_ids)) return "lora_ids";
  if (expert_map_ && changed(expert_map_, *inputs_.pairs.expert_map)) return "expert_map";
  if (!sorted_token_ids_->intact()) return "sorted_token_ids";
  if (!expert_ids_->intact()) return "expert_ids";
  if (!num_tokens_post_pad_->intact()) return "num_tokens_post_pad";
  return {};
}

LoraOutputs GuardedLoraCall::outputs() const {
  const auto copy = [](const Int32s& buffer) {
    return std::vector<std::int32_t>(buffer->span().begin(), buffer->span().end());
  };
  return {copy(sorted_token_ids_), copy(expert_ids_), copy(num_tokens_post_pad_)};
}

}  // namespace tessera::test
