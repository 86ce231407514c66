#include "ops/align_block_size_shape.hpp"

#include <algorithm>
#include <cstdint>
#include <string>

#include "core/align_block_size_implementation.hpp"

namespace tessera::ops {
namespace {

using core::kInt32Max;
using core::Validator;

std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

bool fail_capacity(const AlignBlockSizeShape& shape, std::int64_t capacity, Validator* check) {
  const std::string groups =
      std::to_string(shape.num_experts) + (shape.filtered_group ? " experts + 1)" : " experts)");
  return check->fail(StatusCode::kInvalidValue, "capacity", "at most 2147483647 slots",
                     std::to_string(capacity) + " (" + std::to_string(shape.num_ids) +
                         " ids + min(ids, " + groups + " * (block_size " +
                         std::to_string(shape.block_size) + " - 1)" +
                         (shape.pad_sorted_ids ? ", rounded up to whole blocks)" : ")"));
}

}  // namespace

bool output_sizes(const AlignBlockSizeShape& shape, Validator* check, AlignBlockSizeSizes* sizes) {
  if (!check->in_range("block_size", shape.block_size, 1, kInt32Max) ||
      !check->in_range("num_experts", shape.num_experts, 1, kAlignBlockSizeMaxExperts) ||
      !check->in_range("topk_ids.num_elements", shape.num_ids, 0, kInt32Max)) {
    return false;
  }
  const std::int64_t max_groups = std::min(shape.num_ids, core::num_groups(shape));
  // Below 2^31 + 2^62: no overflow in 64 bits.
  std::int64_t capacity = shape.num_ids + max_groups * (shape.block_size - 1);
  const std::int64_t num_blocks = div_up(capacity, shape.block_size);
  if (shape.pad_sorted_ids) capacity = num_blocks * shape.block_size;
  sizes->sorted_token_ids = capacity;
  sizes->expert_ids = num_blocks;
  return capacity <= kInt32Max || fail_capacity(shape, capacity, check);
}

}  // namespace tessera::ops
