// The checker of select_experts on whole calls: padding, arguments that a call refuses, messages,
// and other programs than Tessera's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "float_bits.hpp"
#include "select_experts_cases.hpp"
#include "select_experts_checker.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kInt32Type{kDLInt, 32, 1};
constexpr DLDataType kInt64Type{kDLInt, 64, 1};

Rules broken_rules(const SelectExpertsArgs& args) {
  Rules rules;
  for (const Violation& v : check_select_experts(args)) rules.push_back(v.rule);
  return rules;
}

/// Three tokens of four experts, the last of which is padding. Sigmoids of 0 and of -inf are exact.
struct ByHand {
  static constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
  std::vector<float> logits = {kMinusInf, 0, kMinusInf, 0, 0, 0, 0, 0, NAN, NAN, NAN, NAN};
  std::vector<float> bias = {0, 0, 0, 0};
  std::int32_t num_valid_tokens = 2;
  std::vector<std::int32_t> ids = {1, 3, 0, 1, -1, -1};
  std::vector<float> weights = {1, 1, 1, 1, 0, 0};

  SelectExpertsArgs args() {
    SelectExpertsArgs a;
    a.router_logits = TensorView::of(logits.data(), kFp32, {3, 4});
    a.correction_bias = TensorView::of(bias.data(), kFp32, {4});
    a.num_valid_tokens = TensorView::of(&num_valid_tokens, kInt32Type, {1});
    a.topk_ids = TensorView::of(ids.data(), kInt32Type, {3, 2});
    a.topk_weights = TensorView::of(weights.data(), kFp32, {3, 2});
    a.top_k = 2;
    a.scoring = Scoring::kSigmoid;
    a.num_expert_group = 2;
    a.topk_group = 2;
    a.routed_scaling_factor = 2;
    return a;
  }
};

TEST(SelectExpertsCheckerOfCalls, AcceptsOutputsWrittenByHand) {
  ByHand call;
  EXPECT_EQ(broken_rules(call.args()), Rules{});
}

TEST(SelectExpertsCheckerOfCalls, PaddingHasIdsMinusOneAndWeightsPlusZero) {
  const auto rules_of = [](auto change) {
    ByHand call;
    change(call);
    return broken_rules(call.args());
  };
  const Rules padding = {"padding"};
  EXPECT_EQ(rules_of([](ByHand& c) { c.ids[4] = 0; }), padding);
  EXPECT_EQ(rules_of([](ByHand& c) { c.ids[5] = -2; }), padding);
  EXPECT_EQ(rules_of([](ByHand& c) { c.weights[5] = 0x1p-149F; }), padding);
  EXPECT_EQ(rules_of([](ByHand& c) { c.weights[4] = -0.0F; }), padding);
  EXPECT_EQ(rules_of([](ByHand& c) { c.weights[4] = NAN; }), padding);
  EXPECT_EQ(rules_of([](ByHand& c) { c.num_valid_tokens = 1; }), padding);
  EXPECT_EQ(rules_of([](ByHand& c) { c.num_valid_tokens = -7; }), padding);
  EXPECT_EQ(rules_of([](ByHand& c) { c.num_valid_tokens = 3; }),
            (Rules{"valid_ids", "exact_bits"}));
  EXPECT_EQ(rules_of([](ByHand& c) { c.num_valid_tokens = 1 << 30; }),
            (Rules{"valid_ids", "exact_bits"}));
}

TEST(SelectExpertsCheckerOfCalls, SaysWhereWhatWasExpectedAndWhatWasFound) {
  const auto violations_of = [](auto change) {
    ByHand call;
    change(call);
    return check_select_experts(call.args());
  };
  const auto ids = violations_of([](ByHand& c) { c.ids[3] = 3; });
  ASSERT_EQ(ids.size(), 1U);  // 3 is as near to the second place as 1: sigmoids are rounded
  EXPECT_EQ(ids[0].message, "exact_bits: topk_ids[1, 1]: expected 1, found 3");
  EXPECT_EQ(ids[0].position, 3);
  EXPECT_EQ(ids[0].expected, 1);
  EXPECT_EQ(ids[0].found, 3);
  const auto gone = violations_of([](ByHand& c) { c.ids[1] = 2; });
  ASSERT_EQ(gone.size(), 3U);
  EXPECT_EQ(gone[0].message, "ids: topk_ids[0, 1]: expected 3, found 2");
  EXPECT_EQ(gone[1].message, "weights: topk_weights[0, 1]: expected 0.0, found 1.0");
  const auto valid = violations_of([](ByHand& c) { c.ids[1] = 4; });
  EXPECT_EQ(valid[0].message, "valid_ids: topk_ids[0, 1]: expected an id in [0, 4), found 4");
  const auto twice = violations_of([](ByHand& c) { c.ids[1] = 1; });
  EXPECT_EQ(twice[0].message,
            "valid_ids: topk_ids[0, 1]: expected an id that no earlier slot has, found 1");
  const auto bits = violations_of([](ByHand& c) { c.weights[2] = std::nextafter(1.0F, 2.0F); });
  ASSERT_EQ(bits.size(), 1U);
  EXPECT_EQ(bits[0].message,
            "exact_bits: topk_weights[1, 0]: expected 1.0 (0x3f800000), "
            "found 1.0000001192092896 (0x3f800001)");
  const auto far = violations_of([](ByHand& c) { c.weights[2] = 2; });
  ASSERT_EQ(far.size(), 2U);
  EXPECT_TRUE(far[0].message.starts_with("weights: topk_weights[1, 0]: expected a value in [0.99"));
  EXPECT_TRUE(far[0].message.ends_with("], found 2.0"));
  const auto padding = violations_of([](ByHand& c) { c.weights[5] = 1; });
  EXPECT_EQ(padding[0].message,
            "padding: topk_weights[2, 1]: expected 0.0 (0x00000000), found 1.0 (0x3f800000)");
}

TEST(SelectExpertsCheckerOfCalls, RefusesWhatACallRefuses) {
  ByHand call;
  const auto expect = [&](auto change, const char* rule, const std::string& array) {
    SelectExpertsArgs args = call.args();
    change(&args);
    const auto violations = check_select_experts(args);
    ASSERT_EQ(violations.size(), 1U) << rule << " " << array;
    EXPECT_EQ(violations[0].rule, rule);
    EXPECT_EQ(violations[0].array, array);
  };
  using Args = SelectExpertsArgs;
  const char* const inputs = "valid_inputs";
  expect([](Args* a) { a->router_logits.dtype = kInt32Type; }, inputs, "router_logits");
  expect([](Args* a) { a->router_logits.ndim = 1; }, inputs, "router_logits");
  expect([](Args* a) { a->router_logits.strides[1] = 2; }, inputs, "router_logits");
  expect([](Args* a) { a->router_logits.data = nullptr; }, inputs, "router_logits");
  expect([](Args* a) { a->router_logits.shape[1] = 0; }, inputs, "router_logits");
  expect([](Args* a) { a->correction_bias.dtype = kBf16; }, inputs, "correction_bias");
  expect([](Args* a) { a->correction_bias.shape[0] = 3; }, inputs, "correction_bias");
  expect([](Args* a) { a->correction_bias.strides[0] = 2; }, inputs, "correction_bias");
  expect([](Args* a) { a->num_valid_tokens.dtype = kInt64Type; }, inputs, "num_valid_tokens");
  expect([](Args* a) { a->num_valid_tokens.num_elements = 2; }, inputs, "num_valid_tokens");
  expect([](Args* a) { a->top_k = 0; }, inputs, "top_k");
  expect([](Args* a) { a->top_k = 5; }, inputs, "top_k");
  expect([](Args* a) { a->num_expert_group = 3; }, inputs, "num_expert_group");
  expect([](Args* a) { a->num_expert_group = 0; }, inputs, "num_expert_group");
  expect([](Args* a) { a->topk_group = 3; }, inputs, "topk_group");
  expect([](Args* a) { a->topk_group = 0; }, inputs, "topk_group");
  expect(
      [](Args* a) {
        a->num_expert_group = 4;
        a->topk_group = 1;
      },
      inputs, "top_k");
  expect([](Args* a) { a->scoring = static_cast<Scoring>(3); }, inputs, "scoring");
  expect([](Args* a) { a->routed_scaling_factor = NAN; }, inputs, "routed_scaling_factor");
  const char* const sizes = "output_sizes";
  expect([](Args* a) { a->topk_ids.dtype = kInt64Type; }, sizes, "topk_ids");
  expect([](Args* a) { a->topk_ids.shape[0] = 2; }, sizes, "topk_ids");
  expect([](Args* a) { a->topk_ids.data = nullptr; }, sizes, "topk_ids");
  expect([](Args* a) { a->topk_ids.strides[0] = 3; }, sizes, "topk_ids");
  expect([](Args* a) { a->topk_weights.dtype = kBf16; }, sizes, "topk_weights");
  expect([](Args* a) { a->topk_weights.shape[1] = 1; }, sizes, "topk_weights");
  expect([](Args* a) { a->top_k = 1; }, sizes, "topk_weights");
}

/// Another program: `score` in a type of its choice, no subnormals kept, sums in ascending order.
template <typename Float>
Rules rules_of_program(const SelectExpertsCase& c) {
  const CaseArguments made = make_arguments(c, 1);
  auto& args = made.as<SelectExpertsArgs>();
  const auto num_experts = static_cast<std::size_t>(c.num_experts);
  const auto top_k = static_cast<std::size_t>(c.top_k);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(c.num_tokens) * top_k);
  std::vector<float> weights(ids.size());
  args.topk_ids = TensorView::of(ids.data(), kInt32Type, {c.num_tokens, c.top_k});
  args.topk_weights = TensorView::of(weights.data(), kFp32, {c.num_tokens, c.top_k});
  const auto* const bias = static_cast<const float*>(args.correction_bias.data);
  std::vector<Float> scores(num_experts);
  std::vector<std::int32_t> order(num_experts);
  for (std::size_t t = 0; t < static_cast<std::size_t>(c.num_tokens); ++t) {
    const float* const v = static_cast<const float*>(args.router_logits.data) + t * num_experts;
    Float sum = 0;
    for (std::size_t e = 0; e < num_experts; ++e) {
      const Float x = v[e];
      if (c.scoring == Scoring::kSoftmax) {
        sum += scores[e] = std::exp2(x * static_cast<Float>(1.4426950408889634));
      } else if (c.scoring == Scoring::kSigmoid) {
        scores[e] = 1 / (1 + std::exp(-x));
      } else {
        scores[e] = std::sqrt(x > 20 ? x : std::log1p(std::exp(x)));
      }
    }
    if (c.scoring == Scoring::kSoftmax) {
      for (Float& score : scores) score *= 1 / sum;
    }
    const auto choice = [&](std::int32_t e) {
      const auto at = static_cast<std::size_t>(e);
      return bias == nullptr ? static_cast<Float>(v[at]) : scores[at] + bias[at];
    };
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return choice(a) > choice(b); });
    Float total = 0;
    for (std::size_t slot = top_k; slot-- > 0;) {
      total += scores[static_cast<std::size_t>(order[slot])];
    }
    for (std::size_t slot = 0; slot < top_k; ++slot) {
      ids[t * top_k + slot] = order[slot];
      const Float score = scores[static_cast<std::size_t>(order[slot])];
      const Float factor = c.scaling_factor / (c.renormalize ? total : Float{1});
      weights[t * top_k + slot] = static_cast<float>(score * factor);
    }
  }
  return broken_rules(args);
}

TEST(SelectExpertsCheckerOfCalls, AcceptsOtherFunctionsAndSums) {
  for (const Scoring scoring : {Scoring::kSoftmax, Scoring::kSigmoid, Scoring::kSqrtSoftplus}) {
    for (const BiasValues bias : {BiasValues::kNone, BiasValues::kOrdinary, BiasValues::kHuge}) {
      SelectExpertsCase c;
      c.num_tokens = 200;
      c.num_experts = 160;
      c.top_k = 100;
      c.scoring = scoring;
      c.bias = bias;
      c.renormalize = bias != BiasValues::kHuge;
      c.scaling_factor = 2.5F;
      EXPECT_EQ(rules_of_program<float>(c), Rules{"exact_bits"}) << static_cast<int>(scoring);
      EXPECT_EQ(rules_of_program<double>(c), Rules{"exact_bits"}) << static_cast<int>(scoring);
    }
  }
}

}  // namespace
}  // namespace tessera::contract
