// Bad arguments: each is refused with its message and code, and nothing is written.
#include <gtest/gtest.h>

#include <string>

#include "align_block_size_cases.hpp"
#include "guarded_call.hpp"

namespace tessera::test {
namespace {

using contract::AlignBlockSizeCase;

constexpr StatusCode kType = StatusCode::kInvalidType;
constexpr StatusCode kValue = StatusCode::kInvalidValue;

struct BadArgument {
  const char* name;
  void (*spoil)(AlignBlockSizeArgs& args, Context& context);
  StatusCode code;
  const char* message;  // after "align_block_size: "
};

/// More than the op asks for: 8 ids need none.
constexpr std::int64_t kWorkspaceBytes = 512;

/// 8 ids, 4 experts, blocks of 4, an identity map: capacity 20, 5 blocks.
AlignBlockSizeCase good_case() {
  AlignBlockSizeCase c;
  c.num_tokens = 4;
  c.top_k = 2;
  c.num_experts = 4;
  c.block_size = 4;
  c.map = contract::MapKind::kIdentity;
  c.statistics = true;
  c.validation = true;
  return c;
}

const BadArgument kBadArguments[] = {
    {"ids_missing", [](auto& a, auto&) { a.topk_ids = {}; }, kValue,
     "topk_ids: expected an array of integers, got none"},
    {"ids_float32",
     [](auto& a, auto&) {
       a.topk_ids.dtype = {kDLFloat, 32, 1};
     },
     kType, "topk_ids.dtype: expected an integer type, got float32"},
    {"ids_bfloat16",
     [](auto& a, auto&) {
       a.topk_ids.dtype = {kDLBfloat, 16, 1};
     },
     kType, "topk_ids.dtype: expected an integer type, got bfloat16"},
    {"ids_bool",
     [](auto& a, auto&) {
       a.topk_ids.dtype = {6, 8, 1};
     },
     kType, "topk_ids.dtype: expected an integer type, got bool"},
    {"ids_int4",
     [](auto& a, auto&) {
       a.topk_ids.dtype = {kDLInt, 4, 1};
     },
     kType, "topk_ids.dtype: expected an integer type, got int4"},
    {"ids_vectors",
     [](auto& a, auto&) {
       a.topk_ids.dtype = {kDLInt, 32, 2};
     },
     kType, "topk_ids.dtype: expected an integer type, got int32x2"},
    {"ids_negative_length", [](auto& a, auto&) { a.topk_ids.num_elements = -8; }, kValue,
     "topk_ids.num_elements: expected an integer in [0, 2147483647], got -8"},
    {"ids_negative_ndim", [](auto& a, auto&) { a.topk_ids.ndim = -1; }, kValue,
     "topk_ids.ndim: expected at least 0, got -1"},
    {"map_negative_ndim", [](auto& a, auto&) { a.expert_map.ndim = -1; }, kValue,
     "expert_map.ndim: expected at least 0, got -1"},
    {"ids_strided", [](auto& a, auto&) { a.topk_ids.contiguous = false; }, kValue,
     "topk_ids: expected a contiguous array, got a strided one"},
    {"ids_elsewhere",
     [](auto& a, auto&) {
       a.topk_ids.device = {kDLCUDA, 1};
     },
     kValue, "topk_ids.device: expected cpu, got cuda:1"},
    {"ids_null", [](auto& a, auto&) { a.topk_ids.data = nullptr; }, kValue,
     "topk_ids.data: expected memory for its elements, got a null pointer"},

    {"ids_misaligned",
     [](auto& a, auto&) { a.topk_ids.data = static_cast<std::byte*>(a.topk_ids.data) + 2; }, kValue,
     "topk_ids.data: expected memory aligned to 4 bytes, got an address 2 past such a boundary"},
    {"ids_int64_misaligned",
     [](auto& a, auto&) {
       a.topk_ids.data = static_cast<std::byte*>(a.topk_ids.data) + 4;
       a.topk_ids.dtype = {kDLInt, 64, 1};
     },
     kValue,
     "topk_ids.data: expected memory aligned to 8 bytes, got an address 4 past such a boundary"},

    {"block_size_zero", [](auto& a, auto&) { a.block_size = 0; }, kValue,
     "block_size: expected an integer in [1, 2147483647], got 0"},
    {"block_size_negative", [](auto& a, auto&) { a.block_size = -128; }, kValue,
     "block_size: expected an integer in [1, 2147483647], got -128"},
    {"num_experts_zero", [](auto& a, auto&) { a.num_experts = 0; }, kValue,
     "num_experts: expected an integer in [1, 1073741824], got 0"},
    {"num_experts_too_large", [](auto& a, auto&) { a.num_experts = 2147483648; }, kValue,
     "num_experts: expected an integer in [1, 1073741824], got 2147483648"},
    {"capacity_overflow", [](auto& a, auto&) { a.block_size = 2147483647; }, kValue,
     "capacity: expected at most 2147483647 slots, got 8589934592 (8 ids + min(ids, 4 experts) * "
     "(block_size 2147483647 - 1))"},

    {"map_int64",
     [](auto& a, auto&) {
       a.expert_map.dtype = {kDLInt, 64, 1};
     },
     kType, "expert_map.dtype: expected int32, got int64"},
    {"map_short", [](auto& a, auto&) { a.expert_map.num_elements = 3; }, kValue,
     "expert_map.num_elements: expected 4, got 3"},
    {"map_long", [](auto& a, auto&) { a.expert_map.num_elements = 5; }, kValue,
     "expert_map.num_elements: expected 4, got 5"},
    {"map_strided", [](auto& a, auto&) { a.expert_map.contiguous = false; }, kValue,
     "expert_map: expected a contiguous array, got a strided one"},
    {"map_elsewhere",
     [](auto& a, auto&) {
       a.expert_map.device = {kDLCUDA, 0};
     },
     kValue, "expert_map.device: expected cpu, got cuda:0"},

    {"sorted_missing", [](auto& a, auto&) { a.sorted_token_ids = {}; }, kValue,
     "sorted_token_ids: expected an int32 array, got none"},
    {"sorted_uint32",
     [](auto& a, auto&) {
       a.sorted_token_ids.dtype = {kDLUInt, 32, 1};
     },
     kType, "sorted_token_ids.dtype: expected int32, got uint32"},
    {"sorted_short", [](auto& a, auto&) { a.sorted_token_ids.num_elements = 19; }, kValue,
     "sorted_token_ids.num_elements: expected at least 20, got 19"},
    {"sorted_negative_length", [](auto& a, auto&) { a.sorted_token_ids.num_elements = -1; }, kValue,
     "sorted_token_ids.num_elements: expected at least 20, got -1"},
    {"sorted_strided", [](auto& a, auto&) { a.sorted_token_ids.contiguous = false; }, kValue,
     "sorted_token_ids: expected a contiguous array, got a strided one"},
    {"sorted_null", [](auto& a, auto&) { a.sorted_token_ids.data = nullptr; }, kValue,
     "sorted_token_ids.data: expected memory for its elements, got a null pointer"},
    {"sorted_misaligned",
     [](auto& a, auto&) {
       a.sorted_token_ids.data = static_cast<std::byte*>(a.sorted_token_ids.data) + 1;
     },
     kValue,
     "sorted_token_ids.data: expected memory aligned to 4 bytes, got an address 1 past such a "
     "boundary"},
    {"experts_missing", [](auto& a, auto&) { a.expert_ids = {}; }, kValue,
     "expert_ids: expected an int32 array, got none"},
    {"experts_int64",
     [](auto& a, auto&) {
       a.expert_ids.dtype = {kDLInt, 64, 1};
     },
     kType, "expert_ids.dtype: expected int32, got int64"},
    {"experts_short", [](auto& a, auto&) { a.expert_ids.num_elements = 4; }, kValue,
     "expert_ids.num_elements: expected at least 5, got 4"},
    {"total_missing", [](auto& a, auto&) { a.num_tokens_post_pad = {}; }, kValue,
     "num_tokens_post_pad: expected an int32 array, got none"},
    {"total_empty", [](auto& a, auto&) { a.num_tokens_post_pad.num_elements = 0; }, kValue,
     "num_tokens_post_pad.num_elements: expected 1, got 0"},
    {"total_elsewhere",
     [](auto& a, auto&) {
       a.num_tokens_post_pad.device = {kDLCUDA, 0};
     },
     kValue, "num_tokens_post_pad.device: expected cpu, got cuda:0"},
    {"counts_short", [](auto& a, auto&) { a.expert_counts.num_elements = 3; }, kValue,
     "expert_counts.num_elements: expected 4, got 3"},
    {"counts_float32",
     [](auto& a, auto&) {
       a.expert_counts.dtype = {kDLFloat, 32, 1};
     },
     kType, "expert_counts.dtype: expected int32, got float32"},
    {"dropped_long", [](auto& a, auto&) { a.num_dropped.num_elements = 2; }, kValue,
     "num_dropped.num_elements: expected 1, got 2"},

    {"statistics_float32",
     [](auto& a, auto&) {
       a.statistics.dtype = {kDLFloat, 32, 1};
     },
     kType, "statistics.dtype: expected float64, got float32"},
    {"statistics_long", [](auto& a, auto&) { a.statistics.num_elements = 7; }, kValue,
     "statistics.num_elements: expected 6, got 7"},
    {"statistics_misaligned",
     [](auto& a, auto&) { a.statistics.data = static_cast<std::byte*>(a.statistics.data) + 4; },
     kValue,
     "statistics.data: expected memory aligned to 8 bytes, got an address 4 past such a boundary"},
    {"validation_int32",
     [](auto& a, auto&) {
       a.validation.dtype = {kDLInt, 32, 1};
     },
     kType, "validation.dtype: expected int64, got int32"},
    {"validation_short", [](auto& a, auto&) { a.validation.num_elements = 5; }, kValue,
     "validation.num_elements: expected 6, got 5"},
    {"validation_elsewhere",
     [](auto& a, auto&) {
       a.validation.device = {kDLCUDA, 0};
     },
     kValue, "validation.device: expected cpu, got cuda:0"},
    {"capacity_overflow_of_the_filtered_group",
     [](auto& a, auto&) {
       a.filtered_group = true;
       a.block_size = 429496729;
     },
     kValue,
     "capacity: expected at most 2147483647 slots, got 2147483648 (8 ids + min(ids, 4 experts + 1) "
     "* (block_size 429496729 - 1))"},

    {"experts_in_sorted", [](auto& a, auto&) { a.expert_ids.data = a.sorted_token_ids.data; },
     kValue, "sorted_token_ids: expected memory of its own, got memory shared with expert_ids"},
    {"sorted_over_the_last_id",
     [](auto& a, auto&) {
       a.sorted_token_ids.data = static_cast<std::int32_t*>(a.topk_ids.data) + 7;
     },
     kValue, "sorted_token_ids: expected memory of its own, got memory shared with topk_ids"},
    {"counts_are_the_map", [](auto& a, auto&) { a.expert_counts.data = a.expert_map.data; }, kValue,
     "expert_counts: expected memory of its own, got memory shared with expert_map"},
    {"dropped_is_total", [](auto& a, auto&) { a.num_dropped.data = a.num_tokens_post_pad.data; },
     kValue, "num_tokens_post_pad: expected memory of its own, got memory shared with num_dropped"},
    {"statistics_are_validation", [](auto& a, auto&) { a.statistics.data = a.validation.data; },
     kValue, "statistics: expected memory of its own, got memory shared with validation"},
    {"workspace_in_sorted",
     [](auto& a, auto& c) { a.expert_ids.data = c.workspace.data() + c.workspace.size() / 8 * 4; },
     kValue, "expert_ids: expected memory of its own, got memory shared with workspace"},

    {"threads_negative", [](auto&, auto& c) { c.num_threads = -2; }, kValue,
     "num_threads: expected an integer >= 1, or 0 for automatic, got -2"},
};

class BadArguments : public testing::TestWithParam<BadArgument> {};

TEST_P(BadArguments, AreRefusedBeforeAnyWrite) {
  TypedCall<AlignBlockSizeArgs> call(good_case());
  Context context;
  GuardedBuffer<std::byte> workspace(kWorkspaceBytes);
  context.workspace = workspace.span();
  GetParam().spoil(call.args, context);

  const Status status = align_block_size(call.args, context);
  EXPECT_EQ(status.code(), GetParam().code);
  EXPECT_EQ(status.message(), std::string("align_block_size: ") + GetParam().message);
  EXPECT_TRUE(call.outputs_untouched());
  EXPECT_EQ(call.damage(), "");
  EXPECT_TRUE(workspace.untouched());
}

INSTANTIATE_TEST_SUITE_P(, BadArguments, testing::ValuesIn(kBadArguments),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(AlignBlockSizeArguments, TheCaseThatTheBadOnesSpoilIsGood) {
  TypedCall<AlignBlockSizeArgs> call(good_case());
  const Status status = call.run();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_FALSE(call.outputs_untouched());
}

}  // namespace
}  // namespace tessera::test
