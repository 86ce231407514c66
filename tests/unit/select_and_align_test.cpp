// What is special to select_and_align: outputs worked out by hand, those of the two ops that it
// joins, and its own messages. What all ops have in common is tested in all_ops.
#include "tessera/select_and_align.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "contracts.hpp"
#include "select_and_align_cases.hpp"
#include "select_and_align_checker.hpp"
#include "tessera/ops.hpp"

namespace tessera::test {
namespace {

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kFp64{kDLFloat, 64, 1};
constexpr DLDataType kInt32{kDLInt, 32, 1};

using Ints = std::vector<std::int32_t>;

/// All implementations that run here. The reference and the portable one run everywhere.
std::vector<std::string> implementations() {
  std::vector<std::string> names;
  std::vector<ImplementationReport> reports;
  const auto made = contract::find_contract("select_and_align")->arguments("qwen3", 1);
  EXPECT_TRUE(find_op("select_and_align")->explain(made.args.get(), Context{}, &reports).ok());
  for (const ImplementationReport& report : reports) {
    if (report.refusal.empty()) names.push_back(report.name);
  }
  EXPECT_GE(names.size(), 2U);
  return names;
}

Status call(const SelectAndAlignArgs& args, Context context) {
  AlignBlockSizeSizes sizes;
  if (Status s = select_and_align_sizes(args, context, &sizes); !s.ok()) return s;
  std::vector<std::byte> workspace(sizes.workspace_bytes);
  context.workspace = workspace;
  return select_and_align(args, context);
}

/// Memory for all outputs, filled with 77.
struct Outputs {
  explicit Outputs(const SelectAndAlignArgs& args)
      : weights(static_cast<std::size_t>(args.topk_weights.num_elements), 77),
        ids(weights.size(), 77),
        sorted_token_ids(static_cast<std::size_t>(args.sorted_token_ids.num_elements), 77),
        expert_ids(static_cast<std::size_t>(args.expert_ids.num_elements), 77),
        num_tokens_post_pad(1, 77),
        expert_counts(static_cast<std::size_t>(args.expert_counts.num_elements), 77),
        statistics(kAlignBlockSizeNumStatistics, 77) {}

  void give_to(SelectAndAlignArgs* args) {
    args->topk_weights.data = weights.data();
    args->topk_ids.data = ids.data();
    args->sorted_token_ids.data = sorted_token_ids.data();
    args->expert_ids.data = expert_ids.data();
    args->num_tokens_post_pad.data = num_tokens_post_pad.data();
    if (args->expert_counts.given()) args->expert_counts.data = expert_counts.data();
    if (args->statistics.given()) args->statistics.data = statistics.data();
  }

  bool operator==(const Outputs&) const = default;

  std::vector<std::uint32_t> weights;  // bits
  Ints ids;
  Ints sorted_token_ids;
  Ints expert_ids;
  Ints num_tokens_post_pad;
  Ints expert_counts;
  std::vector<double> statistics;
};

/// Three tokens of four experts, of which each chooses two, in blocks of two.
struct ThreeTokens {
  ThreeTokens() {
    args.router_logits = TensorView::of(logits.data(), kFp32, {3, 4});
    args.topk_weights = TensorView::of(weights.data(), kFp32, {3, 2});
    args.topk_ids = TensorView::of(ids.data(), kInt32, {3, 2});
    args.sorted_token_ids = TensorView::of(sorted_token_ids.data(), kInt32, {10});
    args.expert_ids = TensorView::of(expert_ids.data(), kInt32, {5});
    args.num_tokens_post_pad = TensorView::of(num_tokens_post_pad.data(), kInt32, {1});
    args.top_k = 2;
    args.block_size = 2;
    args.renormalize = true;
  }

  std::vector<float> logits = {0, 2, 1, -1, 3, 0, 0, 1, 1, 2, 0, 0};
  std::vector<float> weights = std::vector<float>(6, 77);
  Ints ids = Ints(6, 77);
  Ints sorted_token_ids = Ints(10, 77);
  Ints expert_ids = Ints(5, 77);
  Ints num_tokens_post_pad = {77};
  SelectAndAlignArgs args;
};

TEST(SelectAndAlign, HasTheOutputsThatWereWorkedOutByHand) {
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    ThreeTokens tokens;
    Ints counts(4, 77);
    std::vector<double> statistics(6, 77);
    tokens.args.expert_counts = TensorView::of(counts.data(), kInt32, {4});
    tokens.args.statistics = TensorView::of(statistics.data(), kFp64, {6});
    Context context;
    context.implementation = implementation;
    ASSERT_TRUE(call(tokens.args, context).ok());
    EXPECT_EQ(tokens.ids, (Ints{1, 2, 0, 3, 1, 0}));
    EXPECT_FLOAT_EQ(tokens.weights[0], 0.73105858F);
    EXPECT_EQ(tokens.sorted_token_ids, (Ints{2, 5, 0, 4, 1, 6, 3, 6, 6, 6}));
    EXPECT_EQ(tokens.expert_ids, (Ints{0, 1, 2, 3, -1}));
    EXPECT_EQ(tokens.num_tokens_post_pad, (Ints{8}));
    EXPECT_EQ(counts, (Ints{2, 2, 1, 1}));
    EXPECT_EQ(statistics, (std::vector<double>{6, 4, 4, 2, 2, 1.5}));
  }
}

TEST(SelectAndAlign, PairsOfPaddingAndOfRemoteExpertsAreInNoBlock) {
  for (const std::string& implementation : implementations()) {
    SCOPED_TRACE(implementation);
    ThreeTokens tokens;
    const Ints map = {1, 0, -1, 4};
    const Ints num_valid = {2};
    tokens.args.expert_map = TensorView::of(map.data(), kInt32, {4});
    tokens.args.num_valid_tokens = TensorView::of(num_valid.data(), kInt32, {1});
    tokens.args.ignore_invalid_experts = true;
    Context context;
    context.implementation = implementation;
    ASSERT_TRUE(call(tokens.args, context).ok());
    EXPECT_EQ(tokens.ids, (Ints{1, 2, 0, 3, -1, -1}));
    EXPECT_EQ(tokens.sorted_token_ids, (Ints{0, 6, 2, 6, 6, 6, 6, 6, 6, 6}));
    EXPECT_EQ(tokens.expert_ids, (Ints{0, 1, -1, -1, -1}));
    EXPECT_EQ(tokens.num_tokens_post_pad, (Ints{4}));
  }
}

/// Calls the two ops of `args` one after the other.
void call_both(const SelectAndAlignArgs& args) {
  SelectExpertsArgs selection;
  selection.router_logits = args.router_logits;
  selection.correction_bias = args.correction_bias;
  selection.num_valid_tokens = args.num_valid_tokens;
  selection.topk_weights = args.topk_weights;
  selection.topk_ids = args.topk_ids;
  selection.top_k = args.top_k;
  selection.scoring = args.scoring;
  selection.renormalize = args.renormalize;
  selection.num_expert_group = args.num_expert_group;
  selection.topk_group = args.topk_group;
  selection.routed_scaling_factor = args.routed_scaling_factor;
  Context context;
  std::size_t bytes = 0;
  ASSERT_TRUE(select_experts_workspace_bytes(selection, context, &bytes).ok());
  std::vector<std::byte> workspace(bytes);
  context.workspace = workspace;
  ASSERT_TRUE(select_experts(selection, context).ok());

  AlignBlockSizeArgs alignment;
  alignment.topk_ids = args.topk_ids;
  alignment.block_size = args.block_size;
  alignment.num_experts = args.router_logits.shape[1];
  alignment.expert_map = args.expert_map;
  alignment.ignore_invalid_experts = args.ignore_invalid_experts;
  alignment.pad_sorted_ids = args.pad_sorted_ids;
  alignment.sorted_token_ids = args.sorted_token_ids;
  alignment.expert_ids = args.expert_ids;
  alignment.num_tokens_post_pad = args.num_tokens_post_pad;
  alignment.expert_counts = args.expert_counts;
  alignment.statistics = args.statistics;
  const AlignBlockSizeShape shape{alignment.topk_ids.num_elements, args.block_size,
                                  alignment.num_experts, args.pad_sorted_ids};
  AlignBlockSizeSizes sizes;
  ASSERT_TRUE(align_block_size_sizes(shape, context, &sizes).ok());
  EXPECT_GE(args.sorted_token_ids.num_elements, sizes.sorted_token_ids);
  EXPECT_GE(args.expert_ids.num_elements, sizes.expert_ids);
  workspace.resize(sizes.workspace_bytes);
  context.workspace = workspace;
  ASSERT_TRUE(align_block_size(alignment, context).ok());
}

TEST(SelectAndAlign, HasTheBitsOfTheTwoOpsOneAfterTheOther) {
  const std::vector<std::string> names = implementations();
  const auto expect_same = [&](const contract::SelectAndAlignCase& c) {
    const contract::CaseArguments made = make_arguments(c, 7);
    auto& args = made.as<SelectAndAlignArgs>();
    Outputs of_both(args);
    of_both.give_to(&args);
    call_both(args);
    for (const std::string& name : names) {
      SCOPED_TRACE(c.selection.name + ", " + name);
      Outputs found(args);
      found.give_to(&args);
      Context context;
      context.implementation = name;
      ASSERT_TRUE(call(args, context).ok());
      EXPECT_TRUE(found == of_both);
    }
  };
  for (const contract::SelectAndAlignCase& c : contract::select_and_align_cases()) expect_same(c);
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    expect_same(contract::random_select_and_align_case(seed, 5000));
  }
}

TEST(SelectAndAlign, RefusesWithItsOwnMessages) {
  const auto expect = [&](const std::function<void(SelectAndAlignArgs*)>& change, StatusCode code,
                          const std::string& message) {
    ThreeTokens tokens;
    change(&tokens.args);
    const Status status = call(tokens.args, Context{});
    EXPECT_EQ(status.code(), code) << message;
    EXPECT_EQ(status.message(), "select_and_align: " + message);
    EXPECT_EQ(tokens.ids, Ints(6, 77));
    EXPECT_EQ(tokens.weights, std::vector<float>(6, 77));
    EXPECT_EQ(tokens.sorted_token_ids, Ints(10, 77));
    EXPECT_EQ(tokens.expert_ids, Ints(5, 77));
    EXPECT_EQ(tokens.num_tokens_post_pad, (Ints{77}));
  };
  using Args = SelectAndAlignArgs;
  const StatusCode value = StatusCode::kInvalidValue;
  const StatusCode type = StatusCode::kInvalidType;
  expect([](Args* a) { a->router_logits.shape[1] = 0; }, value,
         "router_logits.shape[1]: expected an integer in [1, 1073741824], got 0");
  expect([](Args* a) { a->top_k = 5; }, value, "top_k: expected an integer in [1, 4], got 5");
  expect([](Args* a) { a->num_expert_group = 3; }, value,
         "num_expert_group: expected a divisor of the number of experts, 4, got 3");
  expect([](Args* a) { a->topk_group = 2; }, value,
         "topk_group: expected an integer in [1, 1], got 2");
  expect([](Args* a) { a->num_expert_group = 4; }, value,
         "top_k: expected at most 1, the experts of topk_group = 1 group, got 2");
  expect([](Args* a) { a->routed_scaling_factor = NAN; }, value,
         "routed_scaling_factor: expected a finite number, got nan");
  expect([](Args* a) { a->block_size = 0; }, value,
         "block_size: expected an integer in [1, 2147483647], got 0");
  expect([](Args* a) { a->block_size = 1 << 30; }, value,
         "capacity: expected at most 2147483647 slots, got 4294967298 (6 ids + "
         "min(ids, 4 experts) * (block_size 1073741824 - 1))");
  expect([](Args* a) { a->sorted_token_ids.num_elements = 9; }, value,
         "sorted_token_ids.num_elements: expected at least 10, got 9");
  expect([](Args* a) { a->router_logits.dtype = kInt32; }, type,
         "router_logits.dtype: expected float16, bfloat16 or float32, got int32");
}

TEST(SelectAndAlign, RefusesMoreIdsThan32BitsCount) {
  SelectAndAlignArgs args;
  args.router_logits = TensorView::of(nullptr, kFp32, {1 << 20, 1 << 12});
  args.top_k = 1 << 11;
  args.block_size = 1;
  AlignBlockSizeSizes sizes;
  const Status status = select_and_align_sizes(args, Context{}, &sizes);
  EXPECT_EQ(status.message(),
            "select_and_align: topk_ids: expected at most 2147483647 ids, got 2147483648");
}

}  // namespace
}  // namespace tessera::test
