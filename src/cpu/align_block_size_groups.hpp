// Computes the blocks of groups from the totals of their buckets.
#pragma once

#include <bit>
#include <cstdint>

namespace tessera::cpu {

/// The non-empty groups among some consecutive buckets, in ascending order.
struct Groups {
  static constexpr int kMaxBuckets = 64;

  int num = 0;
  std::int32_t bucket[kMaxBuckets];
  std::int32_t num_blocks[kMaxBuckets];

  /// Reads the totals of `num_buckets` <= kMaxBuckets buckets from `first` on. Does not branch on a
  /// total: in a small batch about half of the experts are empty, unpredictably.
  Groups(const std::int32_t* totals, std::int32_t first, int num_buckets, double inverse_block) {
    std::uint64_t nonempty = 0;
    for (int k = 0; k < num_buckets; ++k) {
      nonempty |= static_cast<std::uint64_t>(totals[first + k] != 0) << k;
    }
    for (; nonempty != 0; nonempty &= nonempty - 1) {
      bucket[num] = first + std::countr_zero(nonempty);
      // floor((total - 1) / block_size) + 1. The half keeps the quotient at least
      // 0.5 / block_size away from every integer, far more than its rounding error.
      num_blocks[num] = static_cast<std::int32_t>((totals[bucket[num]] - 0.5) * inverse_block) + 1;
      ++num;
    }
  }
};

}  // namespace tessera::cpu
