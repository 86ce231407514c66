#include "guarded_batched_call.hpp"

#include <algorithm>
#include <utility>

namespace tessera::test {

using contract::BatchedAlignBlockSizeCase;

BatchedAlignBlockSizeSizes sizes_of(const BatchedAlignBlockSizeCase& c) {
  const std::int64_t blocks_per_batch = (c.max_tokens_per_batch + c.block_size - 1) / c.block_size;
  const std::int64_t num_blocks = c.num_batches * blocks_per_batch;
  return {num_blocks * c.block_size, num_blocks};
}

GuardedBatchedCall::GuardedBatchedCall(const BatchedAlignBlockSizeCase& c,
                                       std::vector<std::int32_t> counts)
    : counts_(std::move(counts)),
      expert_num_tokens_(std::span<const std::int32_t>(counts_)),
      sorted_token_ids_(sizes_of(c).sorted_token_ids + c.extra_length),
      expert_ids_(sizes_of(c).expert_ids + c.extra_length),
      num_tokens_post_pad_(1) {
  args.expert_num_tokens = TensorView::of(expert_num_tokens_.span());
  args.max_tokens_per_batch = c.max_tokens_per_batch;
  args.block_size = c.block_size;
  args.tail_expert = c.tail_expert;
  args.sorted_token_ids = TensorView::of(sorted_token_ids_.span());
  args.expert_ids = TensorView::of(expert_ids_.span());
  args.num_tokens_post_pad = TensorView::of(num_tokens_post_pad_.span());
}

void GuardedBatchedCall::poison_outputs(std::byte value) {
  for (auto* output : {&sorted_token_ids_, &expert_ids_, &num_tokens_post_pad_}) {
    output->poison(value);
  }
}

bool GuardedBatchedCall::outputs_untouched() const {
  return sorted_token_ids_.untouched() && expert_ids_.untouched() &&
         num_tokens_post_pad_.untouched();
}

std::string GuardedBatchedCall::damage() {
  if (!expert_num_tokens_.intact() || !std::ranges::equal(expert_num_tokens_.span(), counts_)) {
    return "expert_num_tokens";
  }
  if (!sorted_token_ids_.intact()) return "sorted_token_ids";
  if (!expert_ids_.intact()) return "expert_ids";
  return num_tokens_post_pad_.intact() ? "" : "num_tokens_post_pad";
}

BatchedOutputs GuardedBatchedCall::outputs() {
  const auto copy = [](GuardedBuffer<std::int32_t>& buffer) {
    return std::vector<std::int32_t>(buffer.span().begin(), buffer.span().end());
  };
  return {copy(sorted_token_ids_), copy(expert_ids_), *num_tokens_post_pad_.data()};
}

}  // namespace tessera::test
