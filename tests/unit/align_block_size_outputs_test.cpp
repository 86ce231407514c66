// Outputs that are written by hand, from every implementation.
#include <gtest/gtest.h>

#include <span>
#include <string>
#include <vector>

#include "align_block_size_cases.hpp"
#include "align_block_size_checker.hpp"
#include "guarded_call.hpp"

namespace tessera::test {
namespace {

using contract::AlignBlockSizeCase;

void expect_no_violation(const AlignBlockSizeArgs& args) {
  for (const contract::Violation& violation : contract::check_align_block_size(args)) {
    ADD_FAILURE() << violation.message;
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
    TypedCall<AlignBlockSizeArgs> call(c);
    const std::vector<std::int32_t> topk_ids = {2, 0, 1, 2, 2, 3, 0, 2};
    call.args.topk_ids = TensorView::of(std::span(topk_ids));
    Context context;
    context.implementation = implementation;
    const Status status = call.run(context);
    ASSERT_TRUE(status.ok()) << status.message();

    const Outputs outputs = call.outputs();
    EXPECT_EQ(
        outputs.int32s("sorted_token_ids"),
        (std::vector<std::int32_t>{1, 6, 8, 8, 2, 8, 8, 8, 0, 3, 4, 7, 5, 8, 8, 8, 8, 8, 8, 8}));
    EXPECT_EQ(outputs.int32s("expert_ids"), (std::vector<std::int32_t>{0, 1, 2, 3, -1}));
    EXPECT_EQ(outputs.int32s("num_tokens_post_pad")[0], 16);
    EXPECT_EQ(outputs.int32s("expert_counts"), (std::vector<std::int32_t>{2, 1, 4, 1}));
    EXPECT_EQ(outputs.int32s("num_dropped")[0], 0);
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
    TypedCall<AlignBlockSizeArgs> call(shape(filtered_group));
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
    EXPECT_EQ(outputs.int32s("sorted_token_ids"),
              (std::vector<std::int32_t>{2, 10, 12, 1,  7, 12, 3,  12, 12, 0,  4,
                                         5, 9,  12, 12, 6, 12, 12, 12, 12, 12, 12}));
    // The tail shows where global expert 2 lives.
    EXPECT_EQ(outputs.int32s("expert_ids"), (std::vector<std::int32_t>{-1, 1, -1, 0, 0, -1, 0, 0}));
    EXPECT_EQ(outputs.int32s("num_tokens_post_pad")[0], 18);
    EXPECT_EQ(outputs.int32s("expert_counts"), (std::vector<std::int32_t>{2, 1, 4, 1}));
    EXPECT_EQ(outputs.int32s("num_dropped")[0], 2);
    EXPECT_EQ(outputs.at<double>("statistics"), (std::vector<double>{8, 4, 6, 8, 4, 2}));
    EXPECT_EQ(outputs.at<std::int64_t>("validation"),
              (std::vector<std::int64_t>{2, 8, 9, 1, 3, 7}));
  }
}

TEST(AlignBlockSizeOutputs, WithoutTheirGroupFilteredPairsAreDroppedAndInvalid) {
  for (const std::string& implementation : host_implementations(SpoiltExample::shape(false))) {
    SCOPED_TRACE(implementation);
    const Outputs outputs = SpoiltExample().run(implementation, false, true);
    EXPECT_EQ(outputs.int32s("sorted_token_ids"),
              (std::vector<std::int32_t>{0,  4,  5,  9,  12, 12, 1,  7,  12, 12,
                                         12, 12, 12, 12, 12, 12, 12, 12, 12, 12}));
    EXPECT_EQ(outputs.int32s("expert_ids"), (std::vector<std::int32_t>{0, 0, 1, 0, 0, 0, 0}));
    EXPECT_EQ(outputs.int32s("num_dropped")[0], 4);
    EXPECT_EQ(outputs.at<double>("statistics"), (std::vector<double>{6, 2, 3, 3, 4, 1.5}));
    EXPECT_EQ(outputs.at<std::int64_t>("validation"),
              (std::vector<std::int64_t>{4, 2, -1, 1, 3, 7}));
  }
}

}  // namespace
}  // namespace tessera::test
