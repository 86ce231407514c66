// Bad arguments: each is refused with its message and code, and nothing is written.
#include <gtest/gtest.h>

#include <string>

#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"

namespace tessera::test {
namespace {

constexpr StatusCode kType = StatusCode::kInvalidType;
constexpr StatusCode kValue = StatusCode::kInvalidValue;

struct BadArgument {
  const char* name;
  void (*spoil)(LoraAlignBlockSizeArgs& args, Context& context);
  StatusCode code;
  const char* message;  // after "lora_align_block_size: "
};

/// 8 ids of 4 tokens, 4 experts, 3 adapters, blocks of 4: rows of 20 slots in 5 blocks.
contract::LoraAlignBlockSizeCase good_case() {
  contract::LoraAlignBlockSizeCase c;
  c.pairs = {.name = "", .num_tokens = 4, .num_experts = 4, .top_k = 2, .block_size = 4};
  c.pairs.map = contract::MapKind::kIdentity;
  c.max_loras = 3;
  c.enabled = contract::AdapterSet::kAll;
  c.in_use = contract::AdapterSet::kAll;
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
    {"ids_strided", [](auto& a, auto&) { a.topk_ids.contiguous = false; }, kValue,
     "topk_ids: expected a contiguous array, got a strided one"},
    {"block_size_zero", [](auto& a, auto&) { a.block_size = 0; }, kValue,
     "block_size: expected an integer in [1, 2147483647], got 0"},
    {"num_experts_zero", [](auto& a, auto&) { a.num_experts = 0; }, kValue,
     "num_experts: expected an integer in [1, 1073741824], got 0"},
    {"max_loras_zero", [](auto& a, auto&) { a.max_loras = 0; }, kValue,
     "max_loras: expected an integer in [1, 1048576], got 0"},
    {"max_loras_too_large", [](auto& a, auto&) { a.max_loras = 1048577; }, kValue,
     "max_loras: expected an integer in [1, 1048576], got 1048577"},
    {"capacity_overflow", [](auto& a, auto&) { a.block_size = 2147483647; }, kValue,
     "capacity: expected at most 2147483647 slots, got 8589934592 (8 ids + min(ids, 4 experts) * "
     "(block_size 2147483647 - 1))"},

    {"mapping_missing", [](auto& a, auto&) { a.token_lora_mapping = {}; }, kValue,
     "token_lora_mapping: expected an int32 array, got none"},
    {"mapping_int64",
     [](auto& a, auto&) {
       a.token_lora_mapping.dtype = {kDLInt, 64, 1};
     },
     kType, "token_lora_mapping.dtype: expected int32, got int64"},
    {"mapping_of_2_tokens", [](auto& a, auto&) { a.token_lora_mapping.num_elements = 2; }, kValue,
     "token_lora_mapping.num_elements: expected 4, got 2"},
    {"top_k_zero", [](auto& a, auto&) { a.top_k = 0; }, kValue,
     "top_k: expected an integer in [1, 2147483647], got 0"},
    {"top_k_3", [](auto& a, auto&) { a.top_k = 3; }, kValue,
     "top_k: expected a divisor of topk_ids.num_elements, 8, got 3"},
    {"mapping_strided", [](auto& a, auto&) { a.token_lora_mapping.contiguous = false; }, kValue,
     "token_lora_mapping: expected a contiguous array, got a strided one"},
    {"enabled_short", [](auto& a, auto&) { a.adapter_enabled.num_elements = 2; }, kValue,
     "adapter_enabled.num_elements: expected at least 3, got 2"},
    {"enabled_bool",
     [](auto& a, auto&) {
       a.adapter_enabled.dtype = {6, 8, 1};
     },
     kType, "adapter_enabled.dtype: expected int32, got bool"},
    {"lora_ids_int64",
     [](auto& a, auto&) {
       a.lora_ids.dtype = {kDLInt, 64, 1};
     },
     kType, "lora_ids.dtype: expected int32, got int64"},
    {"lora_ids_elsewhere",
     [](auto& a, auto&) {
       a.lora_ids.device = {kDLCUDA, 0};
     },
     kValue, "lora_ids.device: expected cpu, got cuda:0"},
    {"map_short", [](auto& a, auto&) { a.expert_map.num_elements = 3; }, kValue,
     "expert_map.num_elements: expected 4, got 3"},

    {"sorted_missing", [](auto& a, auto&) { a.sorted_token_ids = {}; }, kValue,
     "sorted_token_ids: expected an int32 array, got none"},
    {"sorted_short", [](auto& a, auto&) { a.sorted_token_ids.num_elements = 57; }, kValue,
     "sorted_token_ids.num_elements: expected at least 60, got 57"},
    {"sorted_uneven", [](auto& a, auto&) { a.sorted_token_ids.num_elements = 61; }, kValue,
     "sorted_token_ids.num_elements: expected a multiple of 3, a row for each adapter, got 61"},
    {"experts_int64",
     [](auto& a, auto&) {
       a.expert_ids.dtype = {kDLInt, 64, 1};
     },
     kType, "expert_ids.dtype: expected int32, got int64"},
    {"experts_short", [](auto& a, auto&) { a.expert_ids.num_elements = 14; }, kValue,
     "expert_ids.num_elements: expected at least 15, got 14"},
    {"experts_uneven", [](auto& a, auto&) { a.expert_ids.num_elements = 16; }, kValue,
     "expert_ids.num_elements: expected a multiple of 3, a row for each adapter, got 16"},
    {"totals_short", [](auto& a, auto&) { a.num_tokens_post_pad.num_elements = 2; }, kValue,
     "num_tokens_post_pad.num_elements: expected 3, got 2"},

    {"sorted_is_the_mapping",
     [](auto& a, auto&) { a.token_lora_mapping.data = a.sorted_token_ids.data; }, kValue,
     "sorted_token_ids: expected memory of its own, got memory shared with token_lora_mapping"},
    {"totals_in_lora_ids", [](auto& a, auto&) { a.num_tokens_post_pad.data = a.lora_ids.data; },
     kValue, "num_tokens_post_pad: expected memory of its own, got memory shared with lora_ids"},
    {"experts_in_workspace", [](auto& a, auto& c) { a.expert_ids.data = c.workspace.data(); },
     kValue, "expert_ids: expected memory of its own, got memory shared with workspace"},
    {"workspace_short", [](auto&, auto& c) { c.workspace = c.workspace.first(122); }, kValue,
     "workspace: expected at least 123 bytes, got 122"},
    {"threads_negative", [](auto&, auto& c) { c.num_threads = -2; }, kValue,
     "num_threads: expected an integer >= 1, or 0 for automatic, got -2"},
};

class LoraBadArguments : public testing::TestWithParam<BadArgument> {};

TEST_P(LoraBadArguments, AreRefusedBeforeAnyWrite) {
  TypedCall<LoraAlignBlockSizeArgs> call(good_case());
  Context context;
  LoraAlignBlockSizeSizes sizes;
  ASSERT_TRUE(lora_align_block_size_sizes({8, 4, 4, 3, false}, context, &sizes).ok());
  GuardedBuffer<std::byte> workspace(static_cast<std::int64_t>(sizes.workspace_bytes));
  context.workspace = workspace.span();
  GetParam().spoil(call.args, context);

  const Status status = lora_align_block_size(call.args, context);
  EXPECT_EQ(status.code(), GetParam().code);
  EXPECT_EQ(status.message(), std::string("lora_align_block_size: ") + GetParam().message);
  EXPECT_TRUE(call.outputs_untouched());
  EXPECT_EQ(call.damage(), "");
  EXPECT_TRUE(workspace.untouched());
}

INSTANTIATE_TEST_SUITE_P(, LoraBadArguments, testing::ValuesIn(kBadArguments),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(LoraAlignBlockSizeArguments, TheCaseThatTheBadOnesSpoilIsGood) {
  TypedCall<LoraAlignBlockSizeArgs> call(good_case());
  const Status status = call.run();
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_FALSE(call.outputs_untouched());
}

TEST(LoraAlignBlockSizeArguments, ADeviceWithoutABackendIsUnsupported) {
  Context context;
  context.device = {kDLMetal, 0};
  LoraAlignBlockSizeSizes sizes;
  const Status status = lora_align_block_size_sizes({8, 4, 4, 3, false}, context, &sizes);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_EQ(status.message().substr(0, 38), "lora_align_block_size: implementation:");
}

}  // namespace
}  // namespace tessera::test
