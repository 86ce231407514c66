// The arithmetic of sizes, up to the limits of int32.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tessera/align_block_size.hpp"

namespace tessera {
namespace {

constexpr std::int64_t kMax = 2147483647;
constexpr std::int64_t kMaxExperts = 1073741824;

AlignBlockSizeSizes sizes_of(const AlignBlockSizeShape& shape) {
  AlignBlockSizeSizes sizes;
  const Status status = align_block_size_sizes(shape, Context{}, &sizes);
  EXPECT_TRUE(status.ok()) << status.message();
  return sizes;
}

void expect_refused(const AlignBlockSizeShape& shape, const char* message) {
  AlignBlockSizeSizes sizes{-1, -2, 3};
  const Status status = align_block_size_sizes(shape, Context{}, &sizes);
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_EQ(status.message(), message);
  EXPECT_EQ(sizes.sorted_token_ids, -1);
  EXPECT_EQ(sizes.expert_ids, -2);
  EXPECT_EQ(sizes.workspace_bytes, 3U);
}

/// The most blocks that `num_ids` ids can fill, found by trying every size of every group.
std::int64_t most_blocks(std::int64_t num_ids, std::int64_t num_experts, std::int64_t block_size) {
  std::vector<std::int64_t> best(static_cast<std::size_t>(num_ids) + 1, 0);
  for (std::int64_t expert = 0; expert < num_experts; ++expert) {
    std::vector<std::int64_t> with = best;
    for (std::int64_t n = 0; n <= num_ids; ++n) {
      for (std::int64_t count = 0; count <= n; ++count) {
        with[n] = std::max(with[n], best[n - count] + (count + block_size - 1) / block_size);
      }
    }
    best = with;
  }
  return *std::max_element(best.begin(), best.end());
}

TEST(AlignBlockSizeSizes, CapacityHoldsTheWorstCaseAndNoBlockMore) {
  for (std::int64_t num_ids = 0; num_ids <= 12; ++num_ids) {
    for (std::int64_t num_experts = 1; num_experts <= 5; ++num_experts) {
      for (std::int64_t block_size = 1; block_size <= 6; ++block_size) {
        const AlignBlockSizeSizes exact = sizes_of({num_ids, block_size, num_experts, false});
        const AlignBlockSizeSizes padded = sizes_of({num_ids, block_size, num_experts, true});
        EXPECT_EQ(exact.sorted_token_ids / block_size,
                  most_blocks(num_ids, num_experts, block_size));
        EXPECT_EQ(exact.expert_ids, (exact.sorted_token_ids + block_size - 1) / block_size);
        EXPECT_EQ(padded.expert_ids, exact.expert_ids);
        EXPECT_EQ(padded.sorted_token_ids, exact.expert_ids * block_size);
        const AlignBlockSizeSizes filtered =
            sizes_of({num_ids, block_size, num_experts, false, /*filtered_group=*/true});
        EXPECT_EQ(filtered.sorted_token_ids / block_size,
                  most_blocks(num_ids, num_experts + 1, block_size));
      }
    }
  }
}

TEST(AlignBlockSizeSizes, UserWorkload) {
  const AlignBlockSizeSizes sizes = sizes_of({4096 * 2, 128, 64, false});
  EXPECT_EQ(sizes.sorted_token_ids, 16320);
  EXPECT_EQ(sizes.expert_ids, 128);
}

TEST(AlignBlockSizeSizes, CapacityMayReachTheLargestInt32) {
  EXPECT_EQ(sizes_of({kMax, 1, 1, false}).sorted_token_ids, kMax);
  EXPECT_EQ(sizes_of({kMax, 1, 1, false}).expert_ids, kMax);
  EXPECT_EQ(sizes_of({kMax, 1, 1, true}).sorted_token_ids, kMax);
  EXPECT_EQ(sizes_of({kMax - 1, 2, 1, false}).sorted_token_ids, kMax);
  EXPECT_EQ(sizes_of({kMax - 256 * 127, 128, 256, false}).sorted_token_ids, kMax);
  EXPECT_EQ(sizes_of({1, kMax, 65536, false}).sorted_token_ids, kMax);
  EXPECT_EQ(sizes_of({1, kMax, 65536, true}).sorted_token_ids, kMax);
  EXPECT_EQ(sizes_of({1, kMax, 65536, false}).expert_ids, 1);
  EXPECT_EQ(sizes_of({1, kMax, kMaxExperts, false}).sorted_token_ids, kMax);
}

TEST(AlignBlockSizeSizes, CapacityAboveInt32IsRefusedWithTheNumbers) {
  expect_refused({kMax, 2, 1, false},
                 "align_block_size: capacity: expected at most 2147483647 slots, got 2147483648 "
                 "(2147483647 ids + min(ids, 1 experts) * (block_size 2 - 1))");
  expect_refused({kMax - 256 * 127 + 1, 128, 256, false},
                 "align_block_size: capacity: expected at most 2147483647 slots, got 2147483648 "
                 "(2147451136 ids + min(ids, 256 experts) * (block_size 128 - 1))");
  expect_refused({kMax - 1, 2, 1, true},
                 "align_block_size: capacity: expected at most 2147483647 slots, got 2147483648 "
                 "(2147483646 ids + min(ids, 1 experts) * (block_size 2 - 1), rounded up to whole "
                 "blocks)");
  expect_refused({2, kMax, 1, false},
                 "align_block_size: capacity: expected at most 2147483647 slots, got 2147483648 "
                 "(2 ids + min(ids, 1 experts) * (block_size 2147483647 - 1))");
  expect_refused({kMax, kMax, kMaxExperts, false},
                 "align_block_size: capacity: expected at most 2147483647 slots, got "
                 "2305843009213693951 (2147483647 ids + min(ids, 1073741824 experts) * "
                 "(block_size 2147483647 - 1))");
}

TEST(AlignBlockSizeSizes, ShapeOutsideItsDomainIsRefused) {
  expect_refused({-1, 1, 1, false},
                 "align_block_size: topk_ids.num_elements: expected an integer in [0, 2147483647], "
                 "got -1");
  expect_refused({kMax + 1, 1, 1, false},
                 "align_block_size: topk_ids.num_elements: expected an integer in [0, 2147483647], "
                 "got 2147483648");
  expect_refused({1, 0, 1, false},
                 "align_block_size: block_size: expected an integer in [1, 2147483647], got 0");
  expect_refused({1, kMax + 1, 1, false},
                 "align_block_size: block_size: expected an integer in [1, 2147483647], got "
                 "2147483648");
  expect_refused({1, 1, -5, false},
                 "align_block_size: num_experts: expected an integer in [1, 1073741824], got -5");
  expect_refused({1, 1, kMaxExperts + 1, false},
                 "align_block_size: num_experts: expected an integer in [1, 1073741824], got "
                 "1073741825");
  expect_refused({1, 1, INT64_MAX, false},
                 "align_block_size: num_experts: expected an integer in [1, 1073741824], got "
                 "9223372036854775807");
}

std::size_t workspace_of(const char* implementation, const AlignBlockSizeShape& shape) {
  Context context;
  context.implementation = implementation;
  context.num_threads = 8;
  AlignBlockSizeSizes sizes;
  const Status status = align_block_size_sizes(shape, context, &sizes);
  EXPECT_TRUE(status.ok()) << status.message();
  return sizes.workspace_bytes;
}

TEST(AlignBlockSizeWorkspace, GrowsWithTheIdsWhateverTheExperts) {
  for (const char* implementation : {"cpu/counting_sort", "cpu/reference"}) {
    for (const std::int64_t num_ids : {0, 1, 16, 17, 100, 1000, 65536, 1000000}) {
      for (std::int64_t num_experts = 1; num_experts <= kMaxExperts; num_experts *= 2) {
        const std::size_t bytes = workspace_of(implementation, {num_ids, 1, num_experts, false});
        EXPECT_LE(bytes, static_cast<std::size_t>(num_ids == 0 ? 0 : 256 + 520 * num_ids))
            << implementation << ", " << num_ids << " ids, " << num_experts << " experts";
      }
    }
  }
}

TEST(AlignBlockSizeWorkspace, IsWhatIsUsed) {
  constexpr std::size_t kAlignment = 63;
  EXPECT_EQ(workspace_of("cpu/counting_sort", {16, 128, kMaxExperts, false}), 0U);
  EXPECT_EQ(workspace_of("cpu/counting_sort", {1000, 1, kMaxExperts, false}), 8000 + kAlignment);
  EXPECT_EQ(workspace_of("cpu/counting_sort", {17, 1, 64 * 17 + 1, false}), 136 + kAlignment);
  // A table of 1088 experts, three more buckets, and the rest of a cache line.
  EXPECT_EQ(workspace_of("cpu/counting_sort", {17, 1, 64 * 17, false}), 4416 + kAlignment);
  EXPECT_EQ(workspace_of("cpu/reference", {1, 1, kMaxExperts, false}), 16 + kAlignment);
}

}  // namespace
}  // namespace tessera
