// The checker of select_and_align accepts right outputs and names the rule that wrong ones break.
#include "select_and_align_checker.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "select_and_align_cases.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kFp64{kDLFloat, 64, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};
constexpr DLDataType kInt64{kDLInt, 64, 1};
constexpr float kNone = -std::numeric_limits<float>::infinity();

Rules broken_rules(const SelectAndAlignArgs& args) {
  Rules rules;
  for (const Violation& v : check_select_and_align(args)) rules.push_back(v.rule);
  return rules;
}

/// Four tokens of four experts, the last token of which is padding, in blocks of two. Sigmoids of 0
/// and of -inf are exact.
struct ByHand {
  std::vector<float> logits = {kNone, 0,     0,     kNone,  // experts 1 and 2
                               0,     kNone, kNone, 0,      // 0 and 3
                               0,     0,     kNone, kNone,  // 0 and 1
                               NAN,   NAN,   NAN,   NAN};
  std::int32_t num_valid_tokens = 3;
  std::vector<float> weights = {0.5F, 0.5F, 0.5F, 0.5F, 0.5F, 0.5F, 0, 0};
  std::vector<std::int32_t> ids = {1, 2, 0, 3, 0, 1, -1, -1};
  std::vector<std::int32_t> sorted_token_ids = {2, 4, 0, 5, 1, 8, 3, 8, 8, 8, 8, 8};
  std::vector<std::int32_t> expert_ids = {0, 1, 2, 3, -1, -1};
  std::int32_t num_tokens_post_pad = 8;
  std::vector<std::int32_t> expert_counts = {2, 2, 1, 1};
  std::vector<double> statistics = {6, 4, 4, 2, 2, 1.5};

  SelectAndAlignArgs args() {
    SelectAndAlignArgs a;
    a.router_logits = TensorView::of(logits.data(), kFp32, {4, 4});
    a.num_valid_tokens = TensorView::of(&num_valid_tokens, kInt32, {1});
    a.topk_weights = TensorView::of(weights.data(), kFp32, {4, 2});
    a.topk_ids = TensorView::of(ids.data(), kInt32, {4, 2});
    a.sorted_token_ids = TensorView::of(sorted_token_ids.data(), kInt32, {12});
    a.expert_ids = TensorView::of(expert_ids.data(), kInt32, {6});
    a.num_tokens_post_pad = TensorView::of(&num_tokens_post_pad, kInt32, {1});
    a.expert_counts = TensorView::of(expert_counts.data(), kInt32, {4});
    a.statistics = TensorView::of(statistics.data(), kFp64, {6});
    a.top_k = 2;
    a.block_size = 2;
    a.scoring = Scoring::kSigmoid;
    return a;
  }
};

TEST(SelectAndAlignChecker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  SelectAndAlignArgs args = example.args();
  args.expert_counts = {};
  args.statistics = {};
  EXPECT_EQ(broken_rules(args), Rules{});
}

TEST(SelectAndAlignChecker, AcceptsBlocksByAMap) {
  ByHand example;
  SelectAndAlignArgs args = example.args();
  const std::vector<std::int32_t> map = {1, -1, 0, 9};
  args.expert_map = TensorView::of(map.data(), kInt32, {4});
  EXPECT_EQ(broken_rules(args), Rules{"block_experts"});
  example.expert_ids = {1, -1, 0, -1, -1, -1};
  EXPECT_EQ(broken_rules(args), Rules{});
  args.ignore_invalid_experts = true;
  EXPECT_NE(broken_rules(args), Rules{});
  // Local expert 0 has the pair of expert 2, local expert 1 those of expert 0.
  example.sorted_token_ids = {1, 8, 2, 4, 8, 8, 8, 8, 8, 8, 8, 8};
  example.expert_ids = {0, 1, -1, -1, -1, -1};
  example.num_tokens_post_pad = 4;
  example.expert_counts = {1, 2, 0, 0};
  example.statistics = {3, 2, 2, 1, 2, 0.75};
  EXPECT_EQ(broken_rules(args), Rules{});
}

struct Mutation {
  const char* what;
  std::function<void(ByHand*)> spoil;
  Rules rules;
  const char* message;  ///< of the first violation
};

TEST(SelectAndAlignChecker, NamesTheRuleThatAMutationBreaks) {
  const std::vector<Mutation> mutations = {
      {"a weight of a token that is padding",
       [](ByHand* e) { e->weights[7] = 0.5F; },
       {"padding"},
       "padding: topk_weights[3, 1]: expected 0.0 (0x00000000), found 0.5 (0x3f000000)"},
      {"an id of a token that is padding, and a block for it",
       [](ByHand* e) {
         e->ids[6] = 3;
         e->sorted_token_ids[7] = 6;
         e->expert_counts[3] = 2;
         e->statistics = {7, 4, 4, 1, 2, 1.75};
       },
       {"padding"},
       "padding: topk_ids[3, 0]: expected -1, found 3"},
      {"an id twice, and blocks for it",
       [](ByHand* e) {
         e->ids[1] = 1;
         e->sorted_token_ids = {2, 4, 0, 1, 5, 8, 3, 8, 8, 8, 8, 8};
         e->expert_ids = {0, 1, 1, 3, -1, -1};
         e->expert_counts = {2, 3, 0, 1};
         e->statistics = {6, 3, 4, 2, 3, 1.5};
       },
       {"valid_ids", "exact_bits"},
       "valid_ids: topk_ids[0, 1]: expected an id that no earlier slot has, found 1"},
      {"ids in another order, and blocks for them",
       [](ByHand* e) {
         std::swap(e->ids[0], e->ids[1]);
         e->sorted_token_ids = {2, 4, 1, 5, 0, 8, 3, 8, 8, 8, 8, 8};
       },
       {"ids", "exact_bits"},
       "ids: topk_ids[0, 0]: expected 1, found 2"},
      {"ids in another order alone",
       [](ByHand* e) { std::swap(e->ids[0], e->ids[1]); },
       {"ids", "exact_bits", "group_members"},
       "ids: topk_ids[0, 0]: expected 1, found 2"},
      {"a weight", [](ByHand* e) { e->weights[2] = 0.75F; }, {"weights", "exact_bits"}, nullptr},
      {"the last bit of a weight",
       [](ByHand* e) { e->weights[2] = std::nextafter(0.5F, 1.0F); },
       {"exact_bits"},
       nullptr},
      {"a total without padding",
       [](ByHand* e) { e->num_tokens_post_pad = 6; },
       {"num_tokens_post_pad"},
       "num_tokens_post_pad: num_tokens_post_pad[0]: expected 8, found 6"},
      {"pairs of two experts exchanged",
       [](ByHand* e) { std::swap(e->sorted_token_ids[1], e->sorted_token_ids[2]); },
       {"group_members"},
       nullptr},
      {"a pair twice", [](ByHand* e) { e->sorted_token_ids[1] = 2; }, {"no_repeats"}, nullptr},
      {"pairs of an expert exchanged",
       [](ByHand* e) { std::swap(e->sorted_token_ids[2], e->sorted_token_ids[3]); },
       {"stable_order"},
       nullptr},
      {"a filler in a block",
       [](ByHand* e) { e->sorted_token_ids[5] = 6; },
       {"block_padding"},
       "block_padding: sorted_token_ids[5]: expected 8, found 6"},
      {"a filler after the blocks",
       [](ByHand* e) { e->sorted_token_ids[11] = 0; },
       {"sorted_tail"},
       "sorted_tail: sorted_token_ids[11]: expected 8, found 0"},
      {"the expert of a block",
       [](ByHand* e) { e->expert_ids[2] = 3; },
       {"block_experts"},
       "block_experts: expert_ids[2]: expected 2, found 3"},
      {"an expert after the blocks",
       [](ByHand* e) { e->expert_ids[5] = 0; },
       {"expert_tail"},
       "expert_tail: expert_ids[5]: expected -1, found 0"},
      {"a count",
       [](ByHand* e) { e->expert_counts[3] = 0; },
       {"expert_counts"},
       "expert_counts: expert_counts[3]: expected 1, found 0"},
      {"a statistic",
       [](ByHand* e) { e->statistics[5] = 1; },
       {"statistics"},
       "statistics: statistics[5]: expected 1.5, found 1"},
  };
  std::set<std::string> broken = {"valid_inputs", "output_sizes"};  // by the next test
  for (const Mutation& mutation : mutations) {
    ByHand example;
    mutation.spoil(&example);
    const std::vector<Violation> violations = check_select_and_align(example.args());
    Rules rules;
    for (const Violation& violation : violations) rules.push_back(violation.rule);
    EXPECT_EQ(rules, mutation.rules) << mutation.what;
    broken.insert(rules.begin(), rules.end());
    if (mutation.message != nullptr && !violations.empty()) {
      EXPECT_EQ(violations[0].message, mutation.message);
    }
  }
  for (const Rule& rule : kSelectAndAlignRules)
    EXPECT_TRUE(broken.contains(rule.name)) << rule.name;
}

TEST(SelectAndAlignChecker, NamesArgumentsThatACallRefuses) {
  const auto expect = [](const std::function<void(SelectAndAlignArgs*)>& spoil, const char* rule,
                         const char* array) {
    ByHand example;
    SelectAndAlignArgs args = example.args();
    spoil(&args);
    const std::vector<Violation> violations = check_select_and_align(args);
    ASSERT_EQ(violations.size(), 1U) << array;
    EXPECT_EQ(violations[0].rule, rule);
    EXPECT_EQ(violations[0].array, array);
  };
  using Args = SelectAndAlignArgs;
  const char* const inputs = "valid_inputs";
  const char* const sizes = "output_sizes";
  expect([](Args* a) { a->router_logits.dtype = kInt32; }, inputs, "router_logits");
  expect([](Args* a) { a->num_valid_tokens.dtype = kInt64; }, inputs, "num_valid_tokens");
  expect([](Args* a) { a->top_k = 5; }, inputs, "top_k");
  expect([](Args* a) { a->block_size = 0; }, inputs, "block_size");
  expect([](Args* a) { a->block_size = kInt32Max; }, inputs, "block_size");
  expect([](Args* a) { a->expert_map = a->topk_ids; }, inputs, "expert_map");
  expect([](Args* a) { a->topk_weights.dtype = kInt32; }, sizes, "topk_weights");
  expect([](Args* a) { a->topk_ids.shape[1] = 1; }, sizes, "topk_ids");
  expect([](Args* a) { a->sorted_token_ids.num_elements = 11; }, sizes, "sorted_token_ids");
  expect([](Args* a) { a->expert_ids.num_elements = 5; }, sizes, "expert_ids");
  expect([](Args* a) { a->num_tokens_post_pad.dtype = kInt64; }, sizes, "num_tokens_post_pad");
  expect([](Args* a) { a->expert_counts.num_elements = 3; }, sizes, "expert_counts");
  expect([](Args* a) { a->statistics.dtype = kInt64; }, sizes, "statistics");
}

TEST(SelectAndAlignCases, HaveEveryKindOfInput) {
  int with_map = 0;
  int with_counts = 0;
  int with_statistics = 0;
  int with_padding = 0;
  int with_bias = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const SelectAndAlignCase c = random_select_and_align_case(seed, 3000);
    const CaseArguments made = make_arguments(c, seed);
    const auto& args = made.as<SelectAndAlignArgs>();
    EXPECT_LE(args.sorted_token_ids.num_elements, 3 * 3000 + 300);
    with_map += args.expert_map.given() ? 1 : 0;
    with_counts += args.expert_counts.given() ? 1 : 0;
    with_statistics += args.statistics.given() ? 1 : 0;
    with_padding += args.num_valid_tokens.given() ? 1 : 0;
    with_bias += args.correction_bias.given() ? 1 : 0;
  }
  for (const int number : {with_map, with_counts, with_statistics, with_padding, with_bias}) {
    EXPECT_GT(number, 20);
  }
}

}  // namespace
}  // namespace tessera::contract
