// batched_align_block_size on the host: outputs written by hand, messages of refusals, and sizes.
#include "tessera/batched_align_block_size.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <span>
#include <string>
#include <vector>

#include "batched_align_block_size_cases.hpp"
#include "guarded_call.hpp"

namespace tessera::test {
namespace {

using contract::BatchedAlignBlockSizeCase;

constexpr std::int64_t kInt32Max = std::numeric_limits<std::int32_t>::max();

TEST(BatchedAlignBlockSize, WorkedExample) {
  BatchedAlignBlockSizeCase c;
  c.num_batches = 4;
  c.max_tokens_per_batch = 6;
  c.block_size = 4;
  c.extra_length = 1;
  // The last two are taken for 0 and 6.
  TypedCall<BatchedAlignBlockSizeArgs> call(c);
  const std::vector<std::int32_t> counts = {2, 5, -3, 100};
  call.args.expert_num_tokens = TensorView::of(std::span(counts));
  ASSERT_TRUE(call.run().ok());
  const Outputs outputs = call.outputs();
  EXPECT_EQ(
      outputs.int32s("sorted_token_ids"),
      (std::vector<std::int32_t>{0,  1,  24, 24, 6,  7,  8,  9,  10, 24, 24, 24, 18, 19, 20, 21, 22,
                                 23, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24}));
  EXPECT_EQ(outputs.int32s("expert_ids"),
            (std::vector<std::int32_t>{0, 1, 1, 3, 3, -1, -1, -1, -1}));
  EXPECT_EQ(outputs.int32s("num_tokens_post_pad")[0], 20);
}

TEST(BatchedAlignBlockSizeSizes, AreTheContracts) {
  const auto expect = [](const BatchedAlignBlockSizeShape& shape, std::int64_t num_slots,
                         std::int64_t num_blocks) {
    BatchedAlignBlockSizeSizes sizes;
    const Status status = batched_align_block_size_sizes(shape, &sizes);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(sizes.sorted_token_ids, num_slots);
    EXPECT_EQ(sizes.expert_ids, num_blocks);
  };
  expect({32, 100, 16}, 32 * 112, 32 * 7);
  expect({32, 96, 32}, 32 * 96, 32 * 3);
  expect({32, 1, 100}, 3200, 32);
  expect({32, 0, 16}, 0, 0);
  expect({0, 100, 16}, 0, 0);
  expect({kInt32Max, 1, 1}, kInt32Max, kInt32Max);
  expect({1, 1, kInt32Max}, kInt32Max, 1);
  expect({0, kInt32Max, kInt32Max}, 0, 0);
}

TEST(BatchedAlignBlockSizeSizes, AreRefusedWhereTheyDoNotFitInt32) {
  const auto expect = [](const BatchedAlignBlockSizeShape& shape, const std::string& message) {
    BatchedAlignBlockSizeSizes sizes{-1, -1};
    const Status status = batched_align_block_size_sizes(shape, &sizes);
    EXPECT_EQ(status.code(), StatusCode::kInvalidValue);
    EXPECT_EQ(status.message(), "batched_align_block_size: " + message);
    EXPECT_EQ(sizes.sorted_token_ids, -1);
  };
  expect({65536, 32768, 128},
         "capacity: expected at most 2147483647 slots, got 2147483648 (65536 batches * "
         "max_tokens_per_batch 32768 rounded up to whole blocks of 128)");
  expect({kInt32Max, kInt32Max, kInt32Max - 1},
         "capacity: expected at most 2147483647 slots, got 9223372023969873924 (2147483647 "
         "batches * max_tokens_per_batch 2147483647 rounded up to whole blocks of 2147483646)");
  expect({kInt32Max + 1, 0, 1},
         "expert_num_tokens.num_elements: expected an integer in [0, 2147483647], got 2147483648");
  expect({1, -1, 1}, "max_tokens_per_batch: expected an integer in [0, 2147483647], got -1");
  expect({1, 1, 0}, "block_size: expected an integer in [1, 2147483647], got 0");
}

constexpr StatusCode kType = StatusCode::kInvalidType;
constexpr StatusCode kValue = StatusCode::kInvalidValue;

struct BadBatchedArgument {
  const char* name;
  void (*spoil)(BatchedAlignBlockSizeArgs& args);
  StatusCode code;
  const char* message;  // after "batched_align_block_size: "
};

/// 3 batches of up to 6 tokens, blocks of 4: capacity 24, 6 blocks.
BatchedAlignBlockSizeCase good_case() {
  BatchedAlignBlockSizeCase c;
  c.num_batches = 3;
  c.max_tokens_per_batch = 6;
  c.block_size = 4;
  return c;
}

const BadBatchedArgument kBadArguments[] = {
    {"counts_missing", [](auto& a) { a.expert_num_tokens = {}; }, kValue,
     "expert_num_tokens: expected an int32 array, got none"},
    {"counts_int64", [](auto& a) { a.expert_num_tokens.dtype.bits = 64; }, kType,
     "expert_num_tokens.dtype: expected int32, got int64"},
    {"counts_strided", [](auto& a) { a.expert_num_tokens.contiguous = false; }, kValue,
     "expert_num_tokens: expected a contiguous array, got a strided one"},
    {"counts_elsewhere",
     [](auto& a) {
       a.expert_num_tokens.device = {kDLCUDA, 1};
     },
     kValue, "expert_num_tokens.device: expected cpu, got cuda:1"},
    {"counts_null", [](auto& a) { a.expert_num_tokens.data = nullptr; }, kValue,
     "expert_num_tokens.data: expected memory for its elements, got a null pointer"},
    {"counts_negative_length", [](auto& a) { a.expert_num_tokens.num_elements = -3; }, kValue,
     "expert_num_tokens.num_elements: expected an integer in [0, 2147483647], got -3"},
    {"maximum_negative", [](auto& a) { a.max_tokens_per_batch = -1; }, kValue,
     "max_tokens_per_batch: expected an integer in [0, 2147483647], got -1"},
    {"block_size_zero", [](auto& a) { a.block_size = 0; }, kValue,
     "block_size: expected an integer in [1, 2147483647], got 0"},
    {"capacity_overflow", [](auto& a) { a.max_tokens_per_batch = 1 << 30; }, kValue,
     "capacity: expected at most 2147483647 slots, got 3221225472 (3 batches * "
     "max_tokens_per_batch 1073741824 rounded up to whole blocks of 4)"},
    {"sorted_missing", [](auto& a) { a.sorted_token_ids = {}; }, kValue,
     "sorted_token_ids: expected an int32 array, got none"},
    {"sorted_short", [](auto& a) { a.sorted_token_ids.num_elements = 23; }, kValue,
     "sorted_token_ids.num_elements: expected at least 24, got 23"},
    {"sorted_misaligned",
     [](auto& a) {
       a.sorted_token_ids.data = static_cast<std::byte*>(a.sorted_token_ids.data) + 2;
     },
     kValue,
     "sorted_token_ids.data: expected memory aligned to 4 bytes, got an address 2 past such a "
     "boundary"},
    {"experts_short", [](auto& a) { a.expert_ids.num_elements = 5; }, kValue,
     "expert_ids.num_elements: expected at least 6, got 5"},
    {"experts_uint32", [](auto& a) { a.expert_ids.dtype.code = kDLUInt; }, kType,
     "expert_ids.dtype: expected int32, got uint32"},
    {"total_long", [](auto& a) { a.num_tokens_post_pad.num_elements = 2; }, kValue,
     "num_tokens_post_pad.num_elements: expected 1, got 2"},
    {"total_is_a_count", [](auto& a) { a.num_tokens_post_pad.data = a.expert_num_tokens.data; },
     kValue,
     "num_tokens_post_pad: expected memory of its own, got memory shared with expert_num_tokens"},
    {"experts_in_sorted", [](auto& a) { a.expert_ids.data = a.sorted_token_ids.data; }, kValue,
     "sorted_token_ids: expected memory of its own, got memory shared with expert_ids"},
};

class BadBatchedArguments : public testing::TestWithParam<BadBatchedArgument> {};

TEST_P(BadBatchedArguments, AreRefusedBeforeAnyWrite) {
  TypedCall<BatchedAlignBlockSizeArgs> call(good_case());
  GetParam().spoil(call.args);
  const Status status = call.run();
  EXPECT_EQ(status.code(), GetParam().code);
  EXPECT_EQ(status.message(), std::string("batched_align_block_size: ") + GetParam().message);
  EXPECT_TRUE(call.outputs_untouched());
  EXPECT_EQ(call.damage(), "");
}

INSTANTIATE_TEST_SUITE_P(, BadBatchedArguments, testing::ValuesIn(kBadArguments),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(BatchedAlignBlockSizeArguments, TheCaseThatTheBadOnesSpoilIsGood) {
  TypedCall<BatchedAlignBlockSizeArgs> call(good_case());
  const Status status = call.run();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_FALSE(call.outputs_untouched());
}

}  // namespace
}  // namespace tessera::test
