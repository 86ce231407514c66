// Every implementation, on every case: the contract holds, and the bits equal the reference's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <string>

#include "align_block_size_cases.hpp"
#include "align_block_size_checker.hpp"
#include "guarded_call.hpp"

namespace tessera::test {
namespace {

using contract::AlignBlockSizeCase;

/// What the context leaves open must not show in the outputs: thread counts, and what was in
/// memory.
struct Surroundings {
  int num_threads;
  std::byte poison;
};

constexpr Surroundings kSurroundings[] = {
    {1, std::byte{0xa5}}, {2, std::byte{0x00}}, {3, std::byte{0xff}}, {8, std::byte{0x01}}};

void expect_no_violation(const AlignBlockSizeArgs& args) {
  for (const contract::Violation& violation : contract::check_align_block_size(args)) {
    ADD_FAILURE() << violation.message;
  }
}

void expect_contract_holds(const AlignBlockSizeCase& c, std::uint64_t seed) {
  GuardedCall call(c, seed);
  Context context;
  context.implementation = "cpu/reference";
  const Status status = call.run(context);
  ASSERT_TRUE(status.ok()) << status.message();
  const Outputs expected = call.outputs();
  expect_no_violation(call.args);

  for (const std::string& implementation : host_implementations(c)) {
    context.implementation = implementation;
    for (const Surroundings& surroundings : kSurroundings) {
      SCOPED_TRACE("case " + c.name + ", seed " + std::to_string(seed) + ", " + implementation +
                   ", " + std::to_string(surroundings.num_threads) + " threads");
      context.num_threads = surroundings.num_threads;
      call.poison_outputs(surroundings.poison);
      const Status again = call.run(context);
      ASSERT_TRUE(again.ok()) << again.message();
      EXPECT_EQ(call.damage(), "");
      if (call.outputs() == expected) continue;
      ADD_FAILURE() << "differs from cpu/reference";
      expect_no_violation(call.args);
    }
  }
}

class AlignBlockSizeTable : public testing::TestWithParam<AlignBlockSizeCase> {};

TEST_P(AlignBlockSizeTable, ContractHolds) { expect_contract_holds(GetParam(), 1); }

std::string test_name(const testing::TestParamInfo<AlignBlockSizeCase>& info) {
  std::string name = info.param.name;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(, AlignBlockSizeTable,
                         testing::ValuesIn(contract::align_block_size_cases().begin(),
                                           contract::align_block_size_cases().end()),
                         test_name);

TEST(AlignBlockSizeRandom, ContractHoldsOnShortInputs) {
  for (std::uint64_t seed = 0; seed < 2000 && !testing::Test::HasFailure(); ++seed) {
    expect_contract_holds(contract::random_align_block_size_case(seed, 5000), seed);
  }
}

TEST(AlignBlockSizeRandom, ContractHoldsOnInputsWorthThreads) {
  for (std::uint64_t seed = 0; seed < 60 && !testing::Test::HasFailure(); ++seed) {
    expect_contract_holds(contract::random_align_block_size_case(seed, 300000), seed);
  }
}

TEST(AlignBlockSizeOutputs, WorkedExample) {
  AlignBlockSizeCase c;
  c.num_tokens = 4;
  c.top_k = 2;
  c.num_experts = 4;
  c.block_size = 4;
  for (const std::string& implementation : host_implementations(c)) {
    SCOPED_TRACE(implementation);
    GuardedCall call(c);
    const std::vector<std::int32_t> topk_ids = {2, 0, 1, 2, 2, 3, 0, 2};
    call.args.topk_ids = TensorView::of(std::span(topk_ids));
    Context context;
    context.implementation = implementation;
    const Status status = call.run(context);
    ASSERT_TRUE(status.ok()) << status.message();

    const Outputs outputs = call.outputs();
    EXPECT_EQ(outputs.sorted_token_ids, (std::vector<std::int32_t>{1, 6, 8, 8, 2, 8, 8, 8, 0, 3,
                                                                   4, 7, 5, 8, 8, 8, 8, 8, 8, 8}));
    EXPECT_EQ(outputs.expert_ids, (std::vector<std::int32_t>{0, 1, 2, 3, -1}));
    EXPECT_EQ(outputs.num_tokens_post_pad, 16);
    EXPECT_EQ(outputs.expert_counts, (std::vector<std::int32_t>{2, 1, 4, 1}));
    EXPECT_EQ(outputs.num_dropped, 0);
  }
}

/// The worked example with two broken ids and some of -1, in blocks of 3.
struct SpoiltExample {
  static constexpr std::int64_t kNumIds = 12;
  std::vector<std::int8_t> topk_ids = {2, 0, -1, 1, 2, 2, 3, 0, 9, 2, -1, -128};
  std::vector<std::int32_t> expert_map = {1, -1, 0, 7};

  static AlignBlockSizeCase shape(bool filtered_group) {
    AlignBlockSizeCase c;
    c.num_tokens = kNumIds;
    c.num_experts = 4;
    c.block_size = 3;
    c.dtype = {kDLInt, 8, 1};
    c.map = contract::MapKind::kIdentity;
    c.filtered_group = filtered_group;
    c.statistics = true;
    c.validation = true;
    return c;
  }

  Outputs run(const std::string& implementation, bool filtered_group, bool ignore_invalid_experts) {
    GuardedCall call(shape(filtered_group));
    call.args.topk_ids = TensorView::of(std::span(topk_ids));
    call.args.expert_map = TensorView::of(std::span(expert_map));
    call.args.ignore_invalid_experts = ignore_invalid_experts;
    call.args.tail_expert = 2;
    call.args.map_tail = true;
    Context context;
    context.implementation = implementation;
    const Status status = call.run(context);
    EXPECT_TRUE(status.ok()) << status.message();
    expect_no_violation(call.args);
    return call.outputs();
  }
};

TEST(AlignBlockSizeOutputs, FilteredPairsComeFirst) {
  for (const std::string& implementation : host_implementations(SpoiltExample::shape(true))) {
    SCOPED_TRACE(implementation);
    const Outputs outputs = SpoiltExample().run(implementation, true, false);
    EXPECT_EQ(outputs.sorted_token_ids,
              (std::vector<std::int32_t>{2, 10, 12, 1,  7, 12, 3,  12, 12, 0,  4,
                                         5, 9,  12, 12, 6, 12, 12, 12, 12, 12, 12}));
    // The tail shows where global expert 2 lives.
    EXPECT_EQ(outputs.expert_ids, (std::vector<std::int32_t>{-1, 1, -1, 0, 0, -1, 0, 0}));
    EXPECT_EQ(outputs.num_tokens_post_pad, 18);
    EXPECT_EQ(outputs.expert_counts, (std::vector<std::int32_t>{2, 1, 4, 1}));
    EXPECT_EQ(outputs.num_dropped, 2);
    EXPECT_EQ(outputs.statistics, (std::vector<double>{8, 4, 6, 8, 4, 2}));
    EXPECT_EQ(outputs.validation, (std::vector<std::int64_t>{2, 8, 9, 1, 3, 7}));
  }
}

TEST(AlignBlockSizeOutputs, WithoutTheirGroupFilteredPairsAreDroppedAndInvalid) {
  for (const std::string& implementation : host_implementations(SpoiltExample::shape(false))) {
    SCOPED_TRACE(implementation);
    const Outputs outputs = SpoiltExample().run(implementation, false, true);
    EXPECT_EQ(outputs.sorted_token_ids,
              (std::vector<std::int32_t>{0,  4,  5,  9,  12, 12, 1,  7,  12, 12,
                                         12, 12, 12, 12, 12, 12, 12, 12, 12, 12}));
    EXPECT_EQ(outputs.expert_ids, (std::vector<std::int32_t>{0, 0, 1, 0, 0, 0, 0}));
    EXPECT_EQ(outputs.num_dropped, 4);
    EXPECT_EQ(outputs.statistics, (std::vector<double>{6, 2, 3, 3, 4, 1.5}));
    EXPECT_EQ(outputs.validation, (std::vector<std::int64_t>{4, 2, -1, 1, 3, 7}));
  }
}

TEST(AlignBlockSizeOutputs, NoIdsNeedNoMemory) {
  AlignBlockSizeCase c;
  c.num_experts = 4;
  c.block_size = 4;
  for (const std::string& implementation : host_implementations(c)) {
    SCOPED_TRACE(implementation);
    GuardedCall call(c);
    for (TensorView* view :
         {&call.args.topk_ids, &call.args.sorted_token_ids, &call.args.expert_ids}) {
      view->data = nullptr;
    }
    Context context;
    context.implementation = implementation;
    const Status status = call.run(context);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(call.outputs().num_tokens_post_pad, 0);
    EXPECT_EQ(call.outputs().expert_counts, (std::vector<std::int32_t>(4, 0)));
  }
}

TEST(AlignBlockSizeOutputs, OptionalOutputsStayUntouchedUnlessGiven) {
  auto c = contract::find_case("map_broken_local");
  ASSERT_TRUE(c.has_value());
  c->statistics = true;
  c->validation = true;
  for (const std::string& implementation : host_implementations(*c)) {
    SCOPED_TRACE(implementation);
    Context context;
    context.implementation = implementation;
    GuardedCall with(*c), without(*c);
    without.args.expert_counts = {};
    without.args.num_dropped = {};
    without.args.statistics = {};
    without.args.validation = {};
    const Outputs poisoned = without.outputs();
    ASSERT_TRUE(with.run(context).ok());
    ASSERT_TRUE(without.run(context).ok());
    EXPECT_EQ(without.outputs().sorted_token_ids, with.outputs().sorted_token_ids);
    EXPECT_EQ(without.outputs().expert_ids, with.outputs().expert_ids);
    EXPECT_EQ(without.outputs().expert_counts, poisoned.expert_counts);
    EXPECT_EQ(without.outputs().num_dropped, poisoned.num_dropped);
    EXPECT_EQ(without.outputs().statistics, poisoned.statistics);
    EXPECT_EQ(without.outputs().validation, poisoned.validation);
  }
}

}  // namespace
}  // namespace tessera::test
