#include "guarded_call.hpp"

#include <algorithm>

namespace tessera::test {

using contract::AlignBlockSizeCase;

namespace {

AlignBlockSizeShape shape_of(const AlignBlockSizeCase& c) {
  return {c.num_tokens * c.top_k, c.block_size, c.num_experts, c.pad_sorted_ids, c.filtered_group};
}

std::unique_ptr<GuardedBuffer<std::int32_t>> int32_buffer(std::int64_t size) {
  return std::make_unique<GuardedBuffer<std::int32_t>>(size);
}

}  // namespace

AlignBlockSizeSizes sizes_of(const AlignBlockSizeCase& c) {
  const AlignBlockSizeShape s = shape_of(c);
  AlignBlockSizeSizes sizes;
  const std::int64_t num_groups = s.num_experts + (s.filtered_group ? 1 : 0);
  sizes.sorted_token_ids = s.num_ids + std::min(s.num_ids, num_groups) * (s.block_size - 1);
  sizes.expert_ids = (sizes.sorted_token_ids + s.block_size - 1) / s.block_size;
  if (s.pad_sorted_ids) sizes.sorted_token_ids = sizes.expert_ids * s.block_size;
  return sizes;
}

std::vector<std::string> host_implementations(const AlignBlockSizeCase& c) {
  std::vector<ImplementationReport> reports;
  if (!explain_align_block_size(shape_of(c), Context{}, &reports).ok()) return {};
  std::vector<std::string> names;
  for (const ImplementationReport& report : reports) {
    Context forced;
    forced.implementation = report.name;
    AlignBlockSizeSizes sizes;
    if (align_block_size_sizes(shape_of(c), forced, &sizes).ok()) names.push_back(report.name);
  }
  return names;
}

GuardedCall::GuardedCall(const AlignBlockSizeCase& c, std::uint64_t seed)
    : inputs_(contract::make_inputs(c, seed)) {
  const AlignBlockSizeSizes sizes = sizes_of(c);
  // At any address that elements of the type may have.
  topk_ids_ = std::make_unique<GuardedBuffer<std::byte>>(
      std::span<const std::byte>(inputs_.topk_ids), seed / 2 % 8 * (c.dtype.bits / 8U));
  workspace_misalignment_ = seed % 64;
  sorted_token_ids_ = int32_buffer(sizes.sorted_token_ids + c.extra_length);
  expert_ids_ = int32_buffer(sizes.expert_ids + c.extra_length);
  num_tokens_post_pad_ = int32_buffer(1);
  expert_counts_ = int32_buffer(c.num_experts);
  num_dropped_ = int32_buffer(1);
  statistics_ =
      std::make_unique<GuardedBuffer<double>>(c.statistics ? kAlignBlockSizeNumStatistics : 0);
  validation_ = std::make_unique<GuardedBuffer<std::int64_t>>(
      c.validation ? kAlignBlockSizeValidationLength : 0);

  args.topk_ids.data = topk_ids_->data();
  args.topk_ids.num_elements = c.num_tokens * c.top_k;
  args.topk_ids.dtype = c.dtype;
  args.block_size = c.block_size;
  args.num_experts = c.num_experts;
  if (inputs_.expert_map) {
    expert_map_ = std::make_unique<GuardedBuffer<std::int32_t>>(
        std::span<const std::int32_t>(*inputs_.expert_map));
    args.expert_map = TensorView::of(expert_map_->span());
  }
  args.ignore_invalid_experts = c.ignore_invalid_experts;
  args.pad_sorted_ids = c.pad_sorted_ids;
  args.tail_expert = c.tail_expert;
  args.map_tail = c.map_tail;
  args.filtered_group = c.filtered_group;
  args.sorted_token_ids = TensorView::of(sorted_token_ids_->span());
  args.expert_ids = TensorView::of(expert_ids_->span());
  args.num_tokens_post_pad = TensorView::of(num_tokens_post_pad_->span());
  args.expert_counts = TensorView::of(expert_counts_->span());
  args.num_dropped = TensorView::of(num_dropped_->span());
  if (c.statistics) args.statistics = TensorView::of(statistics_->span());
  if (c.validation) args.validation = TensorView::of(validation_->span());
}

Status GuardedCall::run(Context context) {
  const AlignBlockSizeShape shape{args.topk_ids.num_elements, args.block_size, args.num_experts,
                                  args.pad_sorted_ids, args.filtered_group};
  AlignBlockSizeSizes sizes;
  if (Status s = align_block_size_sizes(shape, context, &sizes); !s.ok()) return s;
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes),
                                     workspace_misalignment_);
  context.workspace = workspace.span();
  const Status status = align_block_size(args, context);
  workspace_intact_ = workspace_intact_ && workspace.intact();
  return status;
}

void GuardedCall::poison_outputs(std::byte value) {
  for (auto* output :
       {&sorted_token_ids_, &expert_ids_, &num_tokens_post_pad_, &expert_counts_, &num_dropped_}) {
    (*output)->poison(value);
  }
  statistics_->poison(value);
  validation_->poison(value);
}

bool GuardedCall::outputs_untouched() const {
  return sorted_token_ids_->untouched() && expert_ids_->untouched() &&
         num_tokens_post_pad_->untouched() && expert_counts_->untouched() &&
         num_dropped_->untouched() && statistics_->untouched() && validation_->untouched();
}

std::string GuardedCall::damage() const {
  if (!workspace_intact_) return "workspace";
  if (!topk_ids_->intact() || !std::ranges::equal(topk_ids_->span(), inputs_.topk_ids)) {
    return "topk_ids";
  }
  if (expert_map_ &&
      (!expert_map_->intact() || !std::ranges::equal(expert_map_->span(), *inputs_.expert_map))) {
    return "expert_map";
  }
  if (!sorted_token_ids_->intact()) return "sorted_token_ids";
  if (!expert_ids_->intact()) return "expert_ids";
  if (!num_tokens_post_pad_->intact()) return "num_tokens_post_pad";
  if (!expert_counts_->intact()) return "expert_counts";
  if (!num_dropped_->intact()) return "num_dropped";
  if (!statistics_->intact()) return "statistics";
  if (!validation_->intact()) return "validation";
  return {};
}

Outputs GuardedCall::outputs() const {
  const auto copy = [](auto& buffer) {
    return std::vector(buffer.span().begin(), buffer.span().end());
  };
  return {copy(*sorted_token_ids_), copy(*expert_ids_),    *num_tokens_post_pad_->data(),
          copy(*expert_counts_),    *num_dropped_->data(), copy(*statistics_),
          copy(*validation_)};
}

}  // namespace tessera::test
