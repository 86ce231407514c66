// The checker accepts right outputs and catches wrong ones, in every row.
#include "lora_align_block_size_checker.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "align_block_size_checker.hpp"
#include "guarded_call.hpp"
#include "lora_align_block_size_cases.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

using Call = test::TypedCall<LoraAlignBlockSizeArgs>;
using Rules = std::vector<std::string>;

Rules broken_rules(const LoraAlignBlockSizeArgs& args) {
  Rules rules;
  for (const Violation& v : check_lora_align_block_size(args)) rules.push_back(v.rule);
  return rules;
}

/// Two adapters, of which the second is not enabled, and two groups; outputs written by hand.
struct ByHand {
  std::vector<std::int16_t> topk_ids = {1, 0, 1, -1, 0, 1};
  std::vector<std::int32_t> token_lora_mapping = {0, 1, 0, 0, 2, -1};
  std::vector<std::int32_t> adapter_enabled = {7, 0, 1};
  std::vector<std::int32_t> lora_ids = {5, 0, -1, 1};
  // Row 0: group 1 {0, 2}, for 3 is no expert; 4 and 5 have no row.
  std::vector<std::int32_t> sorted_token_ids = {0, 2, 6, 6, 6, 6, 6, 6, 6, 6,
                                                6, 6, 6, 6, 6, 6, 6, 6, 6, 6};
  std::vector<std::int32_t> expert_ids = {1, 9, 9, 9, 9, 9, 9, 9};
  std::vector<std::int32_t> num_tokens_post_pad = {3, 0};

  LoraAlignBlockSizeArgs args() {
    LoraAlignBlockSizeArgs a;
    a.topk_ids = TensorView::of(std::span(topk_ids));
    a.top_k = 1;
    a.token_lora_mapping = TensorView::of(std::span(token_lora_mapping));
    a.block_size = 3;
    a.num_experts = 2;
    a.max_loras = 2;
    a.adapter_enabled = TensorView::of(std::span(adapter_enabled));
    a.lora_ids = TensorView::of(std::span(lora_ids));
    a.tail_expert = 9;
    a.sorted_token_ids = TensorView::of(std::span(sorted_token_ids));
    a.expert_ids = TensorView::of(std::span(expert_ids));
    a.num_tokens_post_pad = TensorView::of(std::span(num_tokens_post_pad));
    return a;
  }
};

TEST(LoraChecker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

TEST(LoraChecker, SaysInWhichRow) {
  ByHand example;
  example.sorted_token_ids[12] = 1;
  const auto violations = check_lora_align_block_size(example.args());
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0].rule, "sorted_tail");
  EXPECT_EQ(violations[0].position, 12);
  EXPECT_EQ(violations[0].message,
            "adapter 1: sorted_tail: sorted_token_ids[2]: expected 6, found 1");
}

// Inputs decide which row a pair is in: another input makes the same outputs wrong.
TEST(LoraChecker, KnowsWhichAdaptersAreActive) {
  for (const auto change :
       {+[](ByHand& e) { e.adapter_enabled[1] = 1; }, +[](ByHand& e) { e.adapter_enabled[0] = 0; },
        +[](ByHand& e) { e.lora_ids[1] = 1; }, +[](ByHand& e) { e.token_lora_mapping[2] = 3; },
        +[](ByHand& e) { e.token_lora_mapping[5] = 0; }}) {
    ByHand example;
    change(example);
    EXPECT_NE(broken_rules(example.args()), Rules{});
  }
}

struct Mutation {
  const char* name;
  Rules broken;  ///< exactly these
  void (*spoil)(ByHand& example, LoraAlignBlockSizeArgs& args);
};

const Mutation kMutations[] = {
    {"ids_dtype", {"valid_inputs"}, [](auto&, auto& a) { a.topk_ids.dtype.code = kDLFloat; }},
    {"capacity", {"valid_inputs"}, [](auto&, auto& a) { a.block_size = INT32_MAX; }},
    {"no_adapters", {"valid_inputs"}, [](auto&, auto& a) { a.max_loras = 0; }},
    {"too_many_adapters", {"valid_inputs"}, [](auto&, auto& a) { a.max_loras = 1 << 21; }},
    {"no_mapping", {"valid_inputs"}, [](auto&, auto& a) { a.token_lora_mapping = {}; }},
    {"mapping_length",
     {"valid_inputs"},
     [](auto&, auto& a) { a.token_lora_mapping.num_elements = 4; }},
    {"top_k_zero", {"valid_inputs"}, [](auto&, auto& a) { a.top_k = 0; }},
    {"top_k_4", {"valid_inputs"}, [](auto&, auto& a) { a.top_k = 4; }},
    {"enabled_short", {"valid_inputs"}, [](auto&, auto& a) { a.adapter_enabled.num_elements = 1; }},
    {"lora_ids_dtype", {"valid_inputs"}, [](auto&, auto& a) { a.lora_ids.dtype.bits = 16; }},
    {"rows_short", {"output_sizes"}, [](auto&, auto& a) { a.sorted_token_ids.num_elements = 18; }},
    {"rows_uneven", {"output_sizes"}, [](auto&, auto& a) { a.expert_ids.num_elements = 7; }},
    {"total_missing",
     {"output_sizes"},
     [](auto&, auto& a) { a.num_tokens_post_pad.num_elements = 1; }},
    {"total_off", {"num_tokens_post_pad"}, [](auto& e, auto&) { e.num_tokens_post_pad[1] = 3; }},
    {"member_of_another_row", {"group_members"}, [](auto& e, auto&) { e.sorted_token_ids[1] = 1; }},
    {"repeated", {"no_repeats"}, [](auto& e, auto&) { e.sorted_token_ids[1] = 0; }},
    {"swapped",
     {"stable_order"},
     [](auto& e, auto&) { std::swap(e.sorted_token_ids[0], e.sorted_token_ids[1]); }},
    {"padding_unwritten", {"padding"}, [](auto& e, auto&) { e.sorted_token_ids[2] = -1; }},
    {"tail_unwritten", {"sorted_tail"}, [](auto& e, auto&) { e.sorted_token_ids[19] = -1; }},
    {"block_of_another_expert", {"block_experts"}, [](auto& e, auto&) { e.expert_ids[0] = 0; }},
    {"expert_tail_unwritten", {"expert_tail"}, [](auto& e, auto&) { e.expert_ids[4] = 0; }},
    {"rows_exchanged",
     {"num_tokens_post_pad", "group_members", "padding", "sorted_tail", "block_experts",
      "expert_tail"},
     [](auto& e, auto&) {
       std::rotate(e.sorted_token_ids.begin(), e.sorted_token_ids.begin() + 10,
                   e.sorted_token_ids.end());
       std::rotate(e.expert_ids.begin(), e.expert_ids.begin() + 4, e.expert_ids.end());
       std::swap(e.num_tokens_post_pad[0], e.num_tokens_post_pad[1]);
       e.sorted_token_ids[2] = 0;
     }},
};

class LoraMutations : public testing::TestWithParam<Mutation> {};

TEST_P(LoraMutations, AreCaughtByTheRuleThatTheyBreak) {
  ByHand example;
  LoraAlignBlockSizeArgs args = example.args();
  GetParam().spoil(example, args);
  EXPECT_EQ(broken_rules(args), GetParam().broken);
}

INSTANTIATE_TEST_SUITE_P(, LoraMutations, testing::ValuesIn(kMutations),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(LoraChecker, CopesWithAnyGarbageInTheOutputs) {
  RandomNumbers random(11);
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Call call(random_lora_align_block_size_case(seed, 1000), seed);
    for (const TensorView& view :
         {call.args.sorted_token_ids, call.args.expert_ids, call.args.num_tokens_post_pad}) {
      auto* const values = static_cast<std::int32_t*>(view.data);
      for (std::int64_t i = 0; i < view.num_elements; ++i) {
        values[i] = static_cast<std::int32_t>(random.below(std::int64_t{1} << 32));
      }
    }
    EXPECT_NE(broken_rules(call.args), Rules{}) << seed;
    EXPECT_EQ(call.damage(), "") << seed;
  }
}

TEST(LoraCases, InputsAreTheSameEverywhere) {
  LoraAlignBlockSizeCase c;
  c.pairs = {.name = "", .num_tokens = 10, .num_experts = 4, .top_k = 2, .block_size = 4};
  c.max_loras = 3;
  c.enabled = AdapterSet::kBroken;
  c.in_use = AdapterSet::kBroken;
  const LoraAlignBlockSizeInputs inputs = make_inputs(c, 1);
  EXPECT_EQ(inputs.token_lora_mapping,
            (std::vector<std::int32_t>{2, 1, 2, -1, 0, 2, 2, -1, -1, -1}));
  EXPECT_EQ(inputs.adapter_enabled, (std::vector<std::int32_t>{1, 0, INT32_MIN, 0}));
  EXPECT_EQ(inputs.lora_ids,
            (std::vector<std::int32_t>{-1, 3, INT32_MAX, INT32_MIN, 2, -1, 2, 0, -1, 0}));
}

}  // namespace
}  // namespace tessera::contract
