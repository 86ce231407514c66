#include "batched_align_block_size_checker.hpp"

#include <algorithm>
#include <limits>

#include "arrays.hpp"

namespace tessera::contract {
namespace {

constexpr std::int64_t kMaxInt32 = std::numeric_limits<std::int32_t>::max();

bool is_int32_count(std::int64_t value) { return value >= 0 && value <= kMaxInt32; }

class Checker : private ViolationCollector {
 public:
  explicit Checker(const BatchedAlignBlockSizeArgs& args)
      : args_(args),
        num_batches_(args.expert_num_tokens.num_elements),
        max_tokens_(args.max_tokens_per_batch),
        block_size_(args.block_size) {}

  std::vector<Violation> run() {
    check_inputs();
    if (none()) check_sizes();
    if (none()) check_contents();
    return in_order(kBatchedAlignBlockSizeRules);
  }

 private:
  void check_inputs() {
    const TensorView& counts = args_.expert_num_tokens;
    if (!same(counts.dtype, kInt32) || !readable(counts) || num_batches_ > kMaxInt32) {
      invalid_input("expert_num_tokens", "at most 2^31 - 1 contiguous int32 values",
                    describe(counts));
    }
    if (!is_int32_count(max_tokens_)) {
      invalid_input("max_tokens_per_batch", "a value in [0, 2^31 - 1]",
                    std::to_string(max_tokens_));
    }
    if (!is_int32_count(block_size_) || block_size_ == 0) {
      invalid_input("block_size", "a value in [1, 2^31 - 1]", std::to_string(block_size_));
    }
    if (none() && capacity() > kMaxInt32) {
      invalid_input("max_tokens_per_batch", "a capacity of at most 2^31 - 1",
                    std::to_string(capacity()));
    }
  }

  void check_sizes() {
    check_buffer("sorted_token_ids", args_.sorted_token_ids, capacity());
    check_buffer("expert_ids", args_.expert_ids, capacity() / block_size_);
    check_array("num_tokens_post_pad", args_.num_tokens_post_pad, kInt32, 1);
  }

  void check_contents() {
    const std::int64_t filler = num_batches_ * max_tokens_;
    std::int64_t begin = 0;
    for (std::int64_t batch = 0; batch < num_batches_; ++batch) {
      const std::int64_t given = int32s(args_.expert_num_tokens)[static_cast<std::size_t>(batch)];
      const std::int64_t members_end = begin + std::clamp<std::int64_t>(given, 0, max_tokens_);
      const std::int64_t end = begin + padded(members_end - begin);
      check_members(batch, begin, members_end);
      check_values("padding", "sorted_token_ids", args_.sorted_token_ids, members_end, end, filler);
      check_values("block_experts", "expert_ids", args_.expert_ids, begin / block_size_,
                   end / block_size_, batch);
      begin = end;
    }
    check_values("sorted_tail", "sorted_token_ids", args_.sorted_token_ids, begin,
                 args_.sorted_token_ids.num_elements, filler);
    check_values("expert_tail", "expert_ids", args_.expert_ids, begin / block_size_,
                 args_.expert_ids.num_elements, args_.tail_expert);
    check_values("num_tokens_post_pad", "num_tokens_post_pad", args_.num_tokens_post_pad, 0, 1,
                 begin);
  }

  void check_members(std::int64_t batch, std::int64_t begin, std::int64_t end) {
    const auto sorted = int32s(args_.sorted_token_ids);
    for (std::int64_t slot = begin; slot < end; ++slot) {
      const std::int64_t expected = batch * max_tokens_ + slot - begin;
      const std::int64_t found = sorted[static_cast<std::size_t>(slot)];
      if (found == expected) continue;
      add_value("group_members", "sorted_token_ids", slot, expected, found);
      return;
    }
  }

  std::int64_t padded(std::int64_t num_tokens) const {
    return (num_tokens + block_size_ - 1) / block_size_ * block_size_;
  }

  std::int64_t capacity() const { return num_batches_ * padded(max_tokens_); }

  const BatchedAlignBlockSizeArgs& args_;
  const std::int64_t num_batches_;
  const std::int64_t max_tokens_;
  const std::int64_t block_size_;
};

}  // namespace

std::vector<Violation> check_batched_align_block_size(const BatchedAlignBlockSizeArgs& args) {
  return Checker(args).run();
}

}  // namespace tessera::contract
