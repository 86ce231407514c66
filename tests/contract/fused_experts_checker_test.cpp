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
constexpr DLDataType kFp16{kDLFloat, 16, 1};
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

/// One token whose slots have the same expert, H = F = 1, relu2 with w13 = 1: the rules that a
/// value of the output breaks.
Rules rules_of(float x, float w2, std::vector<float> weights, float found,
               DLDataType dtype = kBf16) {
  const FloatFormat format = format_of(dtype);
  const auto bits = [&](float value) { return bits_of(format, rounded(format, value)); };
  std::uint32_t all[] = {bits(x), bits(1), bits(w2), bits(found)};
  const std::int64_t top_k = std::ssize(weights);
  std::vector<std::int32_t> ids(weights.size());
  FusedExpertsArgs args;
  args.x = TensorView::of(&all[0], dtype, {1, 1});
  args.w13 = TensorView::of(&all[1], dtype, {1, 1, 1});
  args.w2 = TensorView::of(&all[2], dtype, {1, 1, 1});
  args.topk_weights = TensorView::of(weights.data(), kFp32, {1, top_k});
  args.topk_ids = TensorView::of(ids.data(), kId32, {1, top_k});
  args.output = TensorView::of(&all[3], dtype, {1, 1});
  args.activation = Activation::kRelu2NoMul;
  return broken_rules(args);
}

const Rules kWrong = {"error_bound"};

TEST(FusedExpertsChecker, ErrorBoundIsThatOfTheContract) {
  // (1 + 2^-6)^2 = 1 + 2^-5 + 2^-12 rounds to 1 + 2^-5 in bfloat16.
  EXPECT_EQ(rules_of(1.015625F, 1, {1}, 1.03125F), Rules{});
  EXPECT_EQ(rules_of(1.015625F, 1, {1}, 1.0390625F), kWrong);
  // 128.5, halfway between two values: to even. Both terms are values of bfloat16.
  EXPECT_EQ(rules_of(16, 1, {0.5F, 0.5F / 256}, 128), Rules{});
  EXPECT_EQ(rules_of(16, 1, {0.5F, 0.5F / 256}, 129), kWrong);
  // 129.5, and one unit of float32 above: up.
  const float just_above = std::nextafter(129.5F / 256, 1.0F);
  EXPECT_EQ(rules_of(16, 1, {just_above}, 130), Rules{});
  EXPECT_EQ(rules_of(16, 1, {just_above}, 129), kWrong);
  // An overflow of the intermediate has no bound; of the output alone, it has.
  EXPECT_EQ(rules_of(0x1p64F, 1, {1}, 5), Rules{});
  EXPECT_EQ(rules_of(0x1p63F, 1, {1}, 5), kWrong);
  EXPECT_EQ(rules_of(0x1p63F, 1, {1}, 0x1p126F), Rules{});
  // Subnormal numbers may count as zeros.
  EXPECT_EQ(rules_of(0x1p-64F, 1, {1}, 0), Rules{});
  EXPECT_EQ(rules_of(0x1p-60F, 1, {0x1p-10F}, 0), Rules{});
  EXPECT_EQ(rules_of(0x1p-60F, 1, {1}, 0), kWrong);
}

TEST(FusedExpertsChecker, RowsMayHaveTheDataTypeOfXOrFloat32) {
  // 1 + 3 * 2^-10 rounds to 1. Three of them are 3 + 9 * 2^-10, which rounds to 3 + 2^-6.
  const std::vector<float> down(3, 1.0029296875F);
  EXPECT_EQ(rules_of(1, 1, down, 3), Rules{});
  EXPECT_EQ(rules_of(1, 1, down, 3.015625F), Rules{});
  EXPECT_EQ(rules_of(1, 1, down, 2.984375F), kWrong);
  EXPECT_EQ(rules_of(1, 1, down, 3.03125F), kWrong);
  // 1 + 5 * 2^-10 rounds to 1 + 2^-7. Five of them are 5 + 25 * 2^-10, which rounds to 5 + 2^-5,
  // and as rows of bfloat16 5 + 5 * 2^-7, which is 5 + 1.25 * 2^-5 and rounds to the same.
  const std::vector<float> up(5, 1.0048828125F);
  EXPECT_EQ(rules_of(1, 1, up, 5), kWrong);
  EXPECT_EQ(rules_of(1, 1, up, 5.03125F), Rules{});
  EXPECT_EQ(rules_of(1, 1, up, 5.0625F), kWrong);
  // The weight is part of what is rounded: 3 * 1.0029296875 = 3 + 9 * 2^-10, halfway and a bit
  // above, rounds up; with 1.0029296875 rounded before it would be 3.
  EXPECT_EQ(rules_of(1, 3, {1.0029296875F}, 3.015625F), Rules{});
  EXPECT_EQ(rules_of(1, 3, {1.0029296875F}, 3), kWrong);
  // So is y in float32: 130/128 * 129/128 = 16,770/2^14, here times enough to end just above
  // 131.5/128. Rounded before the weight, y would be 16,768/2^14, and the row just below that.
  const float to_above_half = 16832.016F / 16770;
  EXPECT_EQ(rules_of(1.0078125F, 1.0078125F, {to_above_half}, 1.03125F), Rules{});
  EXPECT_EQ(rules_of(1.0078125F, 1.0078125F, {to_above_half}, 1.0234375F), kWrong);
  // A row that bfloat16 holds stays exact, and float32 is one kind.
  EXPECT_EQ(rules_of(1, 1, {1.0078125F, 1, 1}, 3.015625F), kWrong);
  EXPECT_EQ(rules_of(1, 1, down, 3.0087890625F, kFp32), Rules{});
  EXPECT_EQ(rules_of(1, 1, down, 3, kFp32), kWrong);
  EXPECT_EQ(rules_of(1, 1, down, std::nextafter(3.0087890625F, 4.0F), kFp32), kWrong);
}

TEST(FusedExpertsChecker, RowsThatOverflowTheDataTypeOfXHaveNoBound) {
  // 65,520 is halfway between the largest value of float16 and 2^16, and rounds to infinity.
  EXPECT_EQ(rules_of(1, 1, {65520, -65520}, 500, kFp16), Rules{});
  EXPECT_EQ(rules_of(1, 1, {65520, -65520}, NAN, kFp16), Rules{});
  // 65,519 rounds to 65,504: at most 15 are left.
  EXPECT_EQ(rules_of(1, 1, {65519, -65519}, 0, kFp16), Rules{});
  EXPECT_EQ(rules_of(1, 1, {65519, -65519}, 15, kFp16), Rules{});
  EXPECT_EQ(rules_of(1, 1, {65519, -65519}, 16, kFp16), kWrong);
  EXPECT_EQ(rules_of(1, 1, {65519, -65519}, NAN, kFp16), kWrong);
  EXPECT_EQ(rules_of(1, 1, {65520, -65520}, 0, kFp32), Rules{});
  EXPECT_EQ(rules_of(1, 1, {65520, -65520}, 500, kFp32), kWrong);
  // What must be a NaN still must.
  EXPECT_EQ(rules_of(1, 1, {65520, NAN}, 500, kFp16), kWrong);
  EXPECT_EQ(rules_of(1, 1, {65520, NAN}, NAN, kFp16), Rules{});
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
