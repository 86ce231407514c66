// lora_align_block_size on the host: outputs written by hand, sizes, and a row is what
// align_block_size gives.
#include "tessera/lora_align_block_size.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"

namespace tessera::test {
namespace {

using contract::AdapterChoice;
using contract::LoraAlignBlockSizeCase;

TEST(LoraAlignBlockSize, WorkedExample) {
  LoraAlignBlockSizeCase c;
  c.pairs = {.name = "", .num_tokens = 4, .num_experts = 3, .top_k = 2, .block_size = 2};
  c.max_loras = 3;
  TypedCall<LoraAlignBlockSizeArgs> call(c);
  const std::vector<std::int32_t> topk_ids = {2, 0, 1, 2, 2, 0, 0, 2};
  const std::vector<std::int32_t> token_lora_mapping = {0, 2, 0, -1};
  call.args.topk_ids = TensorView::of(std::span(topk_ids));
  call.args.token_lora_mapping = TensorView::of(std::span(token_lora_mapping));
  const Status status = call.run();
  ASSERT_TRUE(status.ok()) << status.message();
  const Outputs outputs = call.outputs();
  EXPECT_EQ(outputs.int32s("sorted_token_ids"),
            (std::vector<std::int32_t>{1, 5, 0, 4, 8, 8, 8, 8, 8, 8, 8,  // adapter 0
                                       8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8,
                                       2, 8, 3, 8, 8, 8, 8, 8, 8, 8, 8}));
  EXPECT_EQ(outputs.int32s("expert_ids"),
            (std::vector<std::int32_t>{0, 2, -1, -1, -1, -1,    // adapter 0
                                       -1, -1, -1, -1, -1, -1,  //
                                       1, 2, -1, -1, -1, -1}));
  EXPECT_EQ(outputs.int32s("num_tokens_post_pad"), (std::vector<std::int32_t>{4, 0, 4}));
}

// Compares with the other op on the same pairs, since the checker relies on the contract of that
// op.
TEST(LoraAlignBlockSize, ARowOfAllTokensIsWhatAlignBlockSizeGives) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    LoraAlignBlockSizeCase c;
    c.pairs = contract::random_align_block_size_case(seed, 3000);
    c.pairs.ignore_invalid_experts = true;
    c.pairs.map_tail = false;
    c.pairs.filtered_group = false;
    c.max_loras = 2;
    c.choice = AdapterChoice::kOne;
    SCOPED_TRACE(c.pairs.name);
    TypedCall<AlignBlockSizeArgs> one(c.pairs, seed);
    TypedCall<LoraAlignBlockSizeArgs> rows(c, seed);
    ASSERT_TRUE(one.run().ok());
    const Status status = rows.run();
    ASSERT_TRUE(status.ok()) << status.message();
    const Outputs expected = one.outputs();
    const Outputs found = rows.outputs();
    const auto second_row = [](const std::vector<std::int32_t>& both) {
      return std::vector<std::int32_t>(both.begin() + both.size() / 2, both.end());
    };
    EXPECT_EQ(second_row(found.int32s("sorted_token_ids")), expected.int32s("sorted_token_ids"));
    EXPECT_EQ(second_row(found.int32s("expert_ids")), expected.int32s("expert_ids"));
    EXPECT_EQ(found.int32s("num_tokens_post_pad"),
              (std::vector{0, expected.int32s("num_tokens_post_pad")[0]}));
  }
}

TEST(LoraAlignBlockSize, AnEmptyListOfAdaptersIsNotNone) {
  LoraAlignBlockSizeCase c;
  c.pairs = {.name = "", .num_tokens = 40, .num_experts = 4, .top_k = 2, .block_size = 4};
  c.choice = AdapterChoice::kOne;
  TypedCall<LoraAlignBlockSizeArgs> all(c), none(c);
  none.args.lora_ids = TensorView::of(std::span<std::int32_t>());
  ASSERT_TRUE(none.args.lora_ids.given());
  ASSERT_TRUE(all.run().ok());
  ASSERT_TRUE(none.run().ok());
  EXPECT_GE(all.outputs().int32s("num_tokens_post_pad")[0], 80);
  EXPECT_EQ(none.outputs().int32s("num_tokens_post_pad")[0], 0);
}

TEST(LoraAlignBlockSizeSizes, AreThoseOfARow) {
  const auto sizes_of = [](const LoraAlignBlockSizeShape& shape) {
    LoraAlignBlockSizeSizes sizes;
    const Status status = lora_align_block_size_sizes(shape, Context{}, &sizes);
    EXPECT_TRUE(status.ok()) << status.message();
    return sizes;
  };
  EXPECT_EQ(sizes_of({10, 4, 3, 5, false}).sorted_token_ids, 19);
  EXPECT_EQ(sizes_of({10, 4, 3, 5, false}).expert_ids, 5);
  EXPECT_EQ(sizes_of({10, 4, 3, 5, true}).sorted_token_ids, 20);
  EXPECT_EQ(sizes_of({2, 4, 30, 5, false}).sorted_token_ids, 8);
  EXPECT_EQ(sizes_of({0, 4, 3, 5, false}).sorted_token_ids, 0);
  // All rows together may exceed int32, but one row may not.
  EXPECT_EQ(sizes_of({2147483647, 1, 1, 1 << 20, false}).sorted_token_ids, 2147483647);
  LoraAlignBlockSizeSizes sizes{-1, -2, 3};
  const Status status =
      lora_align_block_size_sizes({2147483646, 3, 1, 1, false}, Context{}, &sizes);
  EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
  EXPECT_EQ(status.message(),
            "lora_align_block_size: capacity: expected at most 2147483647 slots, got 2147483648 "
            "(2147483646 ids + min(ids, 1 experts) * (block_size 3 - 1))");
  EXPECT_EQ(sizes.sorted_token_ids, -1);
}

TEST(LoraAlignBlockSizeWorkspace, GrowsWithIdsAndAdaptersWhateverTheExperts) {
  const auto workspace_of = [](const LoraAlignBlockSizeShape& shape) {
    LoraAlignBlockSizeSizes sizes;
    const Status status = lora_align_block_size_sizes(shape, Context{}, &sizes);
    EXPECT_TRUE(status.ok()) << status.message();
    return sizes.workspace_bytes;
  };
  constexpr std::int64_t kMaxExperts = std::int64_t{1} << 30;
  constexpr std::int64_t kMaxLoras = std::int64_t{1} << 20;
  constexpr std::size_t kAlignment = 63;
  for (const std::int64_t num_ids : {0, 1, 16, 1000, 65536}) {
    for (std::int64_t max_loras = 1; max_loras <= kMaxLoras; max_loras *= 4) {
      for (std::int64_t num_experts = 1; num_experts <= kMaxExperts; num_experts *= 2) {
        EXPECT_LE(workspace_of({num_ids, 1, num_experts, max_loras, false}),
                  static_cast<std::size_t>(4 * max_loras + 256 * num_ids) + kAlignment)
            << num_ids << " ids, " << num_experts << " experts, " << max_loras << " adapters";
      }
    }
  }
  EXPECT_EQ(workspace_of({10, 1, kMaxExperts, kMaxLoras, false}),
            static_cast<std::size_t>(4 * kMaxLoras + 12 * 10) + kAlignment);
  EXPECT_EQ(workspace_of({10, 1, 64, 10, false}), 4 * (10 + 640) + kAlignment);
  EXPECT_EQ(workspace_of({10, 1, 641, 1, false}), 4 * 1 + 12 * 10 + kAlignment);
}

// Tables of counters would take 4 PB.
TEST(LoraAlignBlockSize, TakesTheMostExpertsAndAdapters) {
  LoraAlignBlockSizeCase c;
  c.pairs = {.name = "", .num_tokens = 2, .num_experts = 1 << 30, .top_k = 3, .block_size = 2};
  c.max_loras = 1 << 20;
  c.pairs.num_tokens = 2;
  TypedCall<LoraAlignBlockSizeArgs> call(c);
  const std::vector<std::int32_t> topk_ids = {(1 << 30) - 1, 5, (1 << 30) - 1, 1 << 30, 7, 0};
  const std::vector<std::int32_t> token_lora_mapping = {(1 << 20) - 1, 0};
  call.args.topk_ids = TensorView::of(std::span(topk_ids));
  call.args.token_lora_mapping = TensorView::of(std::span(token_lora_mapping));
  const Status status = call.run();
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(call.damage(), "");
  const Outputs outputs = call.outputs();
  const auto row = [](const std::vector<std::int32_t>& all, std::size_t adapter) {
    const std::size_t length = all.size() >> 20;
    return std::vector<std::int32_t>(all.begin() + adapter * length,
                                     all.begin() + (adapter + 1) * length);
  };
  EXPECT_EQ(row(outputs.int32s("sorted_token_ids"), 0),
            (std::vector<std::int32_t>{5, 6, 4, 6, 6, 6, 6, 6, 6, 6, 6, 6}));
  EXPECT_EQ(row(outputs.int32s("expert_ids"), 0),
            (std::vector<std::int32_t>{0, 7, -1, -1, -1, -1}));
  EXPECT_EQ(row(outputs.int32s("expert_ids"), 1), (std::vector<std::int32_t>(6, -1)));
  EXPECT_EQ(row(outputs.int32s("sorted_token_ids"), (1 << 20) - 1),
            (std::vector<std::int32_t>{1, 6, 0, 2, 6, 6, 6, 6, 6, 6, 6, 6}));
  EXPECT_EQ(row(outputs.int32s("expert_ids"), (1 << 20) - 1),
            (std::vector<std::int32_t>{5, (1 << 30) - 1, -1, -1, -1, -1}));
  EXPECT_EQ(outputs.int32s("num_tokens_post_pad")[0], 4);
  EXPECT_EQ(outputs.int32s("num_tokens_post_pad")[1], 0);
  EXPECT_EQ(outputs.int32s("num_tokens_post_pad").back(), 4);
}

}  // namespace
}  // namespace tessera::test
