// The checker accepts right outputs and catches wrong ones: every rule is broken in many cases, and
// the checker has to name that rule.
#include "align_block_size_checker.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "align_block_size_mutations.hpp"
#include "guarded_call.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

std::vector<std::string> broken_rules(const AlignBlockSizeArgs& args) {
  std::vector<std::string> rules;
  for (const Violation& violation : check_align_block_size(args)) rules.push_back(violation.rule);
  return rules;
}

/// The worked example with two broken ids and a remote expert, its outputs written by hand.
struct ByHand {
  std::vector<std::int8_t> topk_ids = {2, 0, -1, 1, 2, 2, 3, 0, 9, 2};
  std::vector<std::int32_t> expert_map = {1, -1, 0, 7};
  // Groups by global expert: 0 {1, 7}, 1 {3}, 2 {0, 4, 5, 9}, 3 {6}, in blocks of 3.
  std::vector<std::int32_t> sorted_token_ids = {1, 7,  10, 3, 10, 10, 0,  4,  5,
                                                9, 10, 10, 6, 10, 10, 10, 10, 10};
  std::vector<std::int32_t> expert_ids = {1, -1, 0, 0, -1, 5};
  std::vector<std::int32_t> num_tokens_post_pad = {15};
  std::vector<std::int32_t> expert_counts = {2, 1, 4, 1};
  std::vector<std::int32_t> num_dropped = {2};

  AlignBlockSizeArgs args() {
    AlignBlockSizeArgs a;
    a.topk_ids = TensorView::of(std::span(topk_ids));
    a.block_size = 3;
    a.num_experts = 4;
    a.expert_map = TensorView::of(std::span(expert_map));
    a.tail_expert = 5;
    a.sorted_token_ids = TensorView::of(std::span(sorted_token_ids));
    a.expert_ids = TensorView::of(std::span(expert_ids));
    a.num_tokens_post_pad = TensorView::of(std::span(num_tokens_post_pad));
    a.expert_counts = TensorView::of(std::span(expert_counts));
    a.num_dropped = TensorView::of(std::span(num_dropped));
    return a;
  }
};

TEST(Checker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

TEST(Checker, AcceptsLocalGroupsWrittenByHand) {
  ByHand example;
  // Local expert 0 is global 2, local 1 is global 0; 1 and 3 are remote and leave no block.
  example.sorted_token_ids = {0, 4, 5, 9, 10, 10, 1, 7, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10};
  example.expert_ids = {0, 0, 1, 5, 5, 5};
  example.num_tokens_post_pad = {9};
  example.expert_counts = {4, 2, 0, 0};
  AlignBlockSizeArgs args = example.args();
  args.ignore_invalid_experts = true;
  EXPECT_EQ(broken_rules(args), Rules{});
}

TEST(Checker, SaysWhereWhatWasExpectedAndWhatWasFound) {
  ByHand example;
  std::swap(example.sorted_token_ids[7], example.sorted_token_ids[8]);
  const auto violations = check_align_block_size(example.args());
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0].rule, "stable_order");
  EXPECT_EQ(violations[0].array, "sorted_token_ids");
  EXPECT_EQ(violations[0].position, 8);
  EXPECT_EQ(violations[0].expected, 6);
  EXPECT_EQ(violations[0].found, 4);
  EXPECT_EQ(violations[0].message,
            "stable_order: sorted_token_ids[8]: expected an index above 5, found 4");
}

TEST(Checker, NamesTheMemberThatIsMissing) {
  ByHand example;
  example.sorted_token_ids[7] = 3;  // of expert 1
  const auto violations = check_align_block_size(example.args());
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0].message,
            "group_members: sorted_token_ids[7]: expected an index of group 2 such as 4, which is "
            "missing, found 3");
}

class Mutations : public testing::TestWithParam<Mutation> {};

TEST_P(Mutations, AreCaughtByTheRuleThatTheyBreak) {
  constexpr int kEnough = 8;
  int caught = 0;
  const auto spoil = [&](const AlignBlockSizeCase& c) {
    SCOPED_TRACE(c.name);
    Finished finished(c);
    if (!GetParam().spoil(finished)) return;
    EXPECT_EQ(broken_rules(finished.args()), GetParam().broken);
    ++caught;
  };
  for (const AlignBlockSizeCase& c : align_block_size_cases()) {
    if (c.num_tokens * c.top_k <= 4000 && c.num_experts <= 1024) spoil(c);
  }
  for (std::uint64_t seed = 0; seed < 600; ++seed) {
    spoil(random_align_block_size_case(seed, 2000));
  }
  EXPECT_GE(caught, kEnough) << "too few cases offer this mutation a chance";
}

INSTANTIATE_TEST_SUITE_P(, Mutations, testing::ValuesIn(mutations().begin(), mutations().end()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Checker, EveryRuleIsBrokenByAMutation) {
  std::set<std::string> broken;
  for (const Mutation& mutation : mutations()) {
    broken.insert(mutation.broken.begin(), mutation.broken.end());
  }
  for (const Rule& rule : kAlignBlockSizeRules)
    EXPECT_TRUE(broken.contains(rule.name)) << rule.name;
  EXPECT_EQ(broken.size(), std::size(kAlignBlockSizeRules));
}

TEST(Checker, CopesWithAnyGarbageInTheOutputs) {
  RandomNumbers random(11);
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const AlignBlockSizeCase c = random_align_block_size_case(seed, 2000);
    Call call(c, seed);
    for (const TensorView& view :
         {call.args.sorted_token_ids, call.args.expert_ids, call.args.num_tokens_post_pad,
          call.args.expert_counts, call.args.num_dropped}) {
      auto* const values = static_cast<std::int32_t*>(view.data);
      for (std::int64_t i = 0; i < view.num_elements; ++i) {
        values[i] = static_cast<std::int32_t>(random.below(std::int64_t{1} << 32));
      }
    }
    for (const TensorView& view : {call.args.statistics, call.args.validation}) {
      auto* const bytes = static_cast<std::byte*>(view.data);
      for (std::int64_t i = 0; i < 8 * view.num_elements; ++i)
        bytes[i] = std::byte(random.below(256));
    }
    EXPECT_NE(broken_rules(call.args), Rules{}) << c.name;
    EXPECT_EQ(call.damage(), "") << c.name;
  }
}

}  // namespace
}  // namespace tessera::contract
