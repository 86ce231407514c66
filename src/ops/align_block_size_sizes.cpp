#include "ops/align_block_size_sizes.hpp"

#include <algorithm>
#include <string>

namespace tessera::ops {
namespace {

std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

bool fail_capacity(const AlignBlockSizeShape& shape, std::int64_t capacity,
                   core::Validator* check) {
  const std::string groups =
      std::to_string(shape.num_experts) + (shape.filtered_group ? " experts + 1)" : " experts)");
  return check->fail(StatusCode::kInvalidValue, "capacity", "at most 2147483647 slots",
                     std::to_string(capacity) + " (" + std::to_string(shape.num_ids) +
                         " ids + min(ids, " + groups + " * (block_size " +
                         std::to_string(shape.block_size) + " - 1)" +
                         (shape.pad_sorted_ids ? ", rounded up to whole blocks)" : ")"));
}

}  // namespace

bool output_sizes(const AlignBlockSizeShape& shape, core::Validator* check, std::int64_t* capacity,
                  std::int64_t* num_blocks) {
  const std::int64_t max_groups =
      std::min(shape.num_ids, shape.num_experts + (shape.filtered_group ? 1 : 0));
  // Below 2^31 + 2^62: no overflow in 64 bits.
  *capacity = shape.num_ids + max_groups * (shape.block_size - 1);
  *num_blocks = div_up(*capacity, shape.block_size);
  if (shape.pad_sorted_ids) *capacity = *num_blocks * shape.block_size;
  return *capacity <= kInt32Max || fail_capacity(shape, *capacity, check);
}

}  // namespace tessera::ops
