// The checker of fused_experts accepts right outputs and names the rule that wrong ones break.
#include "fused_experts_checker.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "float_bits.hpp"
#include "fused_experts_cases.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kId32{kDLInt, 32, 1};
constexpr float kInf = std::numeric_limits<float>::infinity();

Rules broken_rules(const FusedExpertsArgs& args) {
  Rules rules;
  for (const Violation& v : check_fused_experts(args)) rules.push_back(v.rule);
  return rules;
}

/// Two tokens, two experts, H = 2, F = 1 in float32: relu2 of x[0] and of 2 x[1], times (1, 2).
struct ByHand {
  std::vector<float> x = {1, 2, 3, -4};
  std::vector<float> w13 = {1, 0, 0, 2};
  std::vector<float> w2 = {1, 2, 1, 2};
  std::vector<float> weights = {0.5F, 0.25F, 1, NAN};
  std::vector<std::int32_t> ids = {0, 1, 1, -1};
  std::vector<float> w13_bias = {0, 1};
  std::vector<float> w2_bias = {1, 0, 0, 0.5F};
  // Token 0: 0.5 (1 (1, 2) + (1, 0)) + 0.25 (25 (1, 2) + (0, 0.5)); token 1: 0 (1, 2) + (0, 0.5).
  std::vector<float> output = {7.25F, 13.625F, 0, 0.5F};

  FusedExpertsArgs args() {
    FusedExpertsArgs a;
    a.x = TensorView::of(x.data(), kFp32, {2, 2});
    a.w13 = TensorView::of(w13.data(), kFp32, {2, 1, 2});
    a.w2 = TensorView::of(w2.data(), kFp32, {2, 2, 1});
    a.topk_weights = TensorView::of(weights.data(), kFp32, {2, 2});
    a.topk_ids = TensorView::of(ids.data(), kId32, {2, 2});
    a.w13_bias = TensorView::of(w13_bias.data(), kFp32, {2, 1});
    a.w2_bias = TensorView::of(w2_bias.data(), kFp32, {2, 2});
    a.output = TensorView::of(output.data(), kFp32, {2, 2});
    a.activation = Activation::kRelu2NoMul;
    return a;
  }
};

TEST(FusedExpertsChecker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  EXPECT_EQ(fused_experts_bound_used(example.args()), 0);
}

TEST(FusedExpertsChecker, SaysWhereWhatWasExpectedAndWhatWasFound) {
  ByHand example;
  // Every sum is exact, so that there is one right value.
  example.output[1] = std::nextafter(13.625F, 14.0F);
  const auto exact = check_fused_experts(example.args());
  ASSERT_EQ(exact.size(), 1U);
  EXPECT_EQ(exact[0].rule, "error_bound");
  EXPECT_EQ(exact[0].array, "output");
  EXPECT_EQ(exact[0].position, 1);
  EXPECT_EQ(exact[0].expected, 13.625);
  EXPECT_EQ(exact[0].found, double{example.output[1]});
  EXPECT_EQ(exact[0].message,
            "error_bound: output[0, 1]: expected 13.625, found 13.625000953674316");
  EXPECT_EQ(fused_experts_bound_used(example.args()), double{kInf});

  // Float32 does not hold 0.75 / 3.
  example.w2_bias[3] = 0.75F;
  example.output[1] = 13.6875F;
  example.weights[2] = 1.0F / 3;
  example.output[3] = 0.5F;
  const auto bounded = check_fused_experts(example.args());
  ASSERT_EQ(bounded.size(), 1U);
  EXPECT_EQ(bounded[0].position, 3);
  EXPECT_EQ(bounded[0].message,
            "error_bound: output[1, 1]: expected a value in [0.24999995529651642, "
            "0.2500000596046448], found 0.5, 5.59e+06 times the bound");
  example.output[3] = 0.25F;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

TEST(FusedExpertsChecker, TokensWithoutPairsArePlusZero) {
  ByHand example;
  example.ids = {-1, 2, 1, -1};
  example.output = {0, -0.0F, 0, 0.5F};
  const auto violations = check_fused_experts(example.args());
  ASSERT_EQ(violations.size(), 1U);
  EXPECT_EQ(violations[0].message, "no_experts: output[0, 1]: expected +0, found -0.0");
  example.output[1] = 0;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

TEST(FusedExpertsChecker, NansStayAndInfinitiesHaveNoBound) {
  ByHand example;
  example.x[2] = NAN;  // of token 1, which its expert multiplies by 0
  EXPECT_EQ(broken_rules(example.args()), Rules{"error_bound"});
  example.output[2] = example.output[3] = NAN;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  example.x[2] = kInf;
  example.output[2] = 17;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  example.w2[2] = NAN;  // of expert 1, column 0
  EXPECT_EQ(broken_rules(example.args()), Rules{"error_bound"});
  example.output[0] = example.output[2] = NAN;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
  // Not a NaN where there is a bound.
  example.output[1] = NAN;
  EXPECT_EQ(broken_rules(example.args()), Rules{"error_bound"});
}

/// One token, one expert, H = F = 1, relu2 with w13 = 1 in bfloat16: the rules that a value of the
/// output breaks.
Rules rules_of(float x, float w2, float weight, float found) {
  const auto bits = [](float value) {
    return static_cast<std::uint16_t>(bits_of(kBfloat16Format, rounded(kBfloat16Format, value)));
  };
  const std::uint16_t all[] = {bits(x), bits(1), bits(w2), bits(found)};
  const std::int32_t id = 0;
  FusedExpertsArgs args;
  args.x = TensorView::of(&all[0], kBf16, {1, 1});
  args.w13 = TensorView::of(&all[1], kBf16, {1, 1, 1});
  args.w2 = TensorView::of(&all[2], kBf16, {1, 1, 1});
  args.topk_weights = TensorView::of(&weight, kFp32, {1, 1});
  args.topk_ids = TensorView::of(&id, kId32, {1, 1});
  args.output = TensorView::of(&all[3], kBf16, {1, 1});
  args.activation = Activation::kRelu2NoMul;
  return broken_rules(args);
}

TEST(FusedExpertsChecker, ErrorBoundIsThatOfTheContract) {
  const Rules wrong = {"error_bound"};
  // (1 + 2^-6)^2 = 1 + 2^-5 + 2^-12 rounds to 1 + 2^-5 in bfloat16.
  EXPECT_EQ(rules_of(1.015625F, 1, 1, 1.03125F), Rules{});
  EXPECT_EQ(rules_of(1.015625F, 1, 1, 1.0390625F), wrong);
  // 128.5, halfway between two values: to even; and 3 units of float32 above.
  EXPECT_EQ(rules_of(16, 1, 128.5F / 256, 128), Rules{});
  EXPECT_EQ(rules_of(16, 1, 128.5F / 256, 129), wrong);
  // 1.1 times 1 may round up or down: the bound reaches across the half.
  const float just_above = std::nextafter(129.5F / 256, 1.0F);
  EXPECT_EQ(rules_of(16, 1, just_above, 130), Rules{});
  // An overflow of the intermediate has no bound; of the output alone, it has.
  EXPECT_EQ(rules_of(0x1p64F, 1, 1, 5), Rules{});
  EXPECT_EQ(rules_of(0x1p63F, 1, 1, 5), wrong);
  EXPECT_EQ(rules_of(0x1p63F, 1, 1, 0x1p126F), Rules{});
  // Subnormal numbers may count as zeros.
  EXPECT_EQ(rules_of(0x1p-64F, 1, 1, 0), Rules{});
  EXPECT_EQ(rules_of(0x1p-60F, 1, 0x1p-10F, 0), Rules{});
  EXPECT_EQ(rules_of(0x1p-60F, 1, 1, 0), wrong);
}

TEST(FusedExpertsChecker, RefusesWhatACallRefuses) {
  ByHand example;
  const auto expect = [&](auto change, const char* rule, const std::string& array) {
    FusedExpertsArgs args = example.args();
    change(&args);
    const auto violations = check_fused_experts(args);
    ASSERT_EQ(violations.size(), 1U) << rule << " " << array;
    EXPECT_EQ(violations[0].rule, rule);
    EXPECT_EQ(violations[0].array, array);
  };
  using Args = FusedExpertsArgs;
  const char* const inputs = "valid_inputs";
  expect([](Args* a) { a->x.dtype.code = kDLInt; }, inputs, "x");
  expect([](Args* a) { a->x.ndim = 1; }, inputs, "x");
  expect([](Args* a) { a->x.data = nullptr; }, inputs, "x");
  expect([](Args* a) { a->w13.dtype = kBf16; }, inputs, "w13");
  expect([](Args* a) { a->w13.shape[2] = 1; }, inputs, "w13");
  expect([](Args* a) { a->w13.strides[2] = 2; }, inputs, "w13");
  expect([](Args* a) { a->activation = Activation::kSilu; }, inputs, "w13");
  expect([](Args* a) { a->w2.shape[0] = 1; }, inputs, "w2");
  expect([](Args* a) { a->w2.shape[1] = 1; }, inputs, "w2");
  expect([](Args* a) { a->topk_weights.shape[0] = 1; }, inputs, "topk_weights");
  expect([](Args* a) { a->topk_weights.dtype.code = kDLInt; }, inputs, "topk_weights");
  expect([](Args* a) { a->topk_ids.shape[1] = 1; }, inputs, "topk_ids");
  expect([](Args* a) { a->topk_ids.dtype.bits = 16; }, inputs, "topk_ids");
  expect([](Args* a) { a->expert_map = a->x; }, inputs, "expert_map");
  expect([](Args* a) { a->w13_bias.shape[1] = 2; }, inputs, "w13_bias");
  expect([](Args* a) { a->w2_bias.dtype = kBf16; }, inputs, "w2_bias");
  expect([](Args* a) { a->activation = static_cast<Activation>(9); }, inputs, "activation");
  expect([](Args* a) { a->apply_router_weight_on_input = true; }, inputs,
         "apply_router_weight_on_input");
  expect([](Args* a) { a->swiglu_limit = 1; }, inputs, "swiglu_limit");
  expect([](Args* a) { a->output.shape[0] = 1; }, "output_sizes", "output");
  expect([](Args* a) { a->output.dtype = kBf16; }, "output_sizes", "output");
  expect([](Args* a) { a->output.data = nullptr; }, "output_sizes", "output");
}

TEST(FusedExpertsChecker, SamplesLargeCallsEverywhere) {
  // Zeros, so that nothing has to be computed: 4,000 times 4 pairs of 3 * 16 * 2,048 multiply-adds.
  FusedExpertsCase c;
  c.num_tokens = 4000;
  c.top_k = 4;
  c.num_experts = 4;
  c.hidden_size = 2048;
  c.intermediate_size = 16;
  c.values = ExpertValues::kZero;
  const CaseArguments made = make_arguments(c, 1);
  FusedExpertsArgs args = made.as<FusedExpertsArgs>();
  std::vector<std::uint16_t> output(std::size_t{4000} * 2048);
  args.output.data = output.data();
  EXPECT_EQ(broken_rules(args), Rules{});
  for (const std::size_t at : {0U, 2047U, 3999U * 2048U, 4000U * 2048U - 1}) {
    output[at] = 0x3f80;
    EXPECT_EQ(broken_rules(args), Rules{"error_bound"}) << at;
    output[at] = 0;
  }
  // A tile of columns.
  for (std::size_t t = 0; t < 4000; ++t) {
    std::fill_n(output.begin() + static_cast<std::ptrdiff_t>(t * 2048 + 544), 32, 0x3f80);
  }
  EXPECT_EQ(broken_rules(args), Rules{"error_bound"});
}

}  // namespace
}  // namespace tessera::contract
