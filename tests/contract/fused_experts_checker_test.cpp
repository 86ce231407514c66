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
#include "fused_experts_model.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

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

const FusedExpertsCase& case_named(const std::string& name) {
  const auto cases = fused_experts_cases();
  const auto found = std::ranges::find(cases, name, &FusedExpertsCase::name);
  EXPECT_NE(found, cases.end()) << name;
  return *found;
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
  const char* const kInputs = "valid_inputs";
  expect([](Args* a) { a->x.dtype.code = kDLInt; }, kInputs, "x");
  expect([](Args* a) { a->x.ndim = 1; }, kInputs, "x");
  expect([](Args* a) { a->x.data = nullptr; }, kInputs, "x");
  expect([](Args* a) { a->w13.dtype = kBf16; }, kInputs, "w13");
  expect([](Args* a) { a->w13.shape[2] = 1; }, kInputs, "w13");
  expect([](Args* a) { a->w13.strides[2] = 2; }, kInputs, "w13");
  expect([](Args* a) { a->activation = Activation::kSilu; }, kInputs, "w13");
  expect([](Args* a) { a->w2.shape[0] = 1; }, kInputs, "w2");
  expect([](Args* a) { a->w2.shape[1] = 1; }, kInputs, "w2");
  expect([](Args* a) { a->topk_weights.shape[0] = 1; }, kInputs, "topk_weights");
  expect([](Args* a) { a->topk_weights.dtype.code = kDLInt; }, kInputs, "topk_weights");
  expect([](Args* a) { a->topk_ids.shape[1] = 1; }, kInputs, "topk_ids");
  expect([](Args* a) { a->topk_ids.dtype.bits = 16; }, kInputs, "topk_ids");
  expect([](Args* a) { a->expert_map = a->x; }, kInputs, "expert_map");
  expect([](Args* a) { a->w13_bias.shape[1] = 2; }, kInputs, "w13_bias");
  expect([](Args* a) { a->w2_bias.dtype = kBf16; }, kInputs, "w2_bias");
  expect([](Args* a) { a->activation = static_cast<Activation>(9); }, kInputs, "activation");
  expect([](Args* a) { a->apply_router_weight_on_input = true; }, kInputs,
         "apply_router_weight_on_input");
  expect([](Args* a) { a->swiglu_limit = 1; }, kInputs, "swiglu_limit");
  expect([](Args* a) { a->output.shape[0] = 1; }, "output_sizes", "output");
  expect([](Args* a) { a->output.dtype = kBf16; }, "output_sizes", "output");
  expect([](Args* a) { a->output.data = nullptr; }, "output_sizes", "output");
}

class FusedExpertsCases : public testing::TestWithParam<std::string> {};

TEST_P(FusedExpertsCases, AnyOrderOfTheSumsKeepsTheContract) {
  FusedExpertsModel model(case_named(GetParam()));
  double used = 0;
  for (const Order order : {Order::kForward, Order::kBackward, Order::kParts}) {
    model.run(order);
    for (const Violation& violation : check_fused_experts(model.args())) {
      ADD_FAILURE() << static_cast<int>(order) << ": " << violation.message;
    }
    used = std::max(used, fused_experts_bound_used(model.args()));
  }
  EXPECT_LE(used, 1);
  RecordProperty("bound_used", std::to_string(used));
}

INSTANTIATE_TEST_SUITE_P(Table, FusedExpertsCases, testing::ValuesIn([] {
                           Rules names;
                           for (const FusedExpertsCase& c : fused_experts_cases()) {
                             names.push_back(c.name);
                           }
                           return names;
                         }()),
                         [](const auto& name) { return name.param; });

/// Whether each two values of two sizes meet in a case.
template <typename T>
void expect_all_pairs(const char* what, std::int64_t FusedExpertsCase::*first,
                      const std::vector<std::int64_t>& of_first, T FusedExpertsCase::*second,
                      const std::vector<T>& of_second) {
  for (const std::int64_t a : of_first) {
    for (const T b : of_second) {
      const bool meet = std::ranges::any_of(
          fused_experts_pairwise_cases(),
          [&](const FusedExpertsCase& c) { return c.*first == a && c.*second == b; });
      EXPECT_TRUE(meet) << what << ": " << a << ", value "
                        << std::ranges::find(of_second, b) - of_second.begin();
    }
  }
}

TEST(FusedExpertsPairwiseCases, HaveAllPairsOfSizesAndActivations) {
  using Case = FusedExpertsCase;
  const struct {
    const char* name;
    std::int64_t Case::*member;
    std::vector<std::int64_t> values;
  } sizes[] = {
      {"E", &Case::num_experts, {1, 6, 8, 60, 64, 128, 160, 257}},
      {"k", &Case::top_k, {1, 2, 4, 6, 8, 10}},
      {"F", &Case::intermediate_size, {16, 80, 192, 320, 511, 704, 768, 1408, 2048}},
      {"H", &Case::hidden_size, {64, 320, 512, 2048, 2880, 7168}},
      {"T", &Case::num_tokens, {0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 250, 1000}},
  };
  std::vector<Activation> activations;
  for (std::size_t i = 0; i < std::size(kActivationNames); ++i) {
    activations.push_back(static_cast<Activation>(i));
  }
  for (const auto& a : sizes) {
    for (const auto& b : sizes) {
      if (&a < &b) {
        expect_all_pairs((std::string(a.name) + b.name).c_str(), a.member, a.values, b.member,
                         b.values);
      }
    }
    expect_all_pairs(a.name, a.member, a.values, &Case::activation, activations);
    expect_all_pairs(a.name, a.member, a.values, &Case::transposed, {false, true});
  }
}

TEST(FusedExpertsPairwiseCases, AreSmallEnough) {
  for (const FusedExpertsCase& c : fused_experts_pairwise_cases()) {
    const std::int64_t rows = (has_gate(c.activation) ? 3 : 2) * c.intermediate_size;
    EXPECT_LE(c.num_experts * rows * c.hidden_size * c.format.bits / 8, 256 << 20) << c.name;
  }
}

#if defined(__x86_64__)
/// Makes the thread flush subnormal numbers, and read them as 0.
class FlushesSubnormals {
 public:
  FlushesSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushesSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};
#else
class FlushesSubnormals {};
#endif

TEST(FusedExpertsRandomCases, AnyOrderOfTheSumsKeepsTheContract) {
  for (std::uint64_t seed = 0; seed < 300 && !HasFailure(); ++seed) {
    FusedExpertsModel model(random_fused_experts_case(seed, seed % 2 == 0 ? 200 : 2000), seed);
    for (const Order order : {Order::kForward, Order::kBackward, Order::kParts}) {
      for (const bool flushes : {false, true}) {
        if (flushes) {
          const FlushesSubnormals environment;
          model.run(order);
        } else {
          model.run(order);
        }
        for (const Violation& violation : check_fused_experts(model.args())) {
          ADD_FAILURE() << seed << ", " << static_cast<int>(order) << ", " << flushes << ": "
                        << violation.message;
        }
      }
    }
  }
}

struct FaultFound {
  Fault fault;
  const char* what;
  const char* in;  ///< a case that finds it
};

constexpr FaultFound kFaults[] = {
    {Fault::kSkipsHiddenStep, "SkipsHiddenStep", "decode_wide"},
    {Fault::kSkipsHiddenStep, "SkipsHiddenStepFp32", "fp32"},
    {Fault::kSkipsIntermediateStep, "SkipsIntermediateStep", "decode_long"},
    {Fault::kSkipsIntermediateStep, "SkipsIntermediateStepFp32", "fp32"},
    {Fault::kIgnoresHiddenTail, "IgnoresHiddenTail", "odd_sizes"},
    {Fault::kIgnoresIntermediateTail, "IgnoresIntermediateTail", "511_intermediate"},
    {Fault::kExchangesGateAndUp, "ExchangesGateAndUp", "gelu"},
    {Fault::kExchangesGateAndUp, "ExchangesInterleavedGateAndUp", "swigluoai"},
    {Fault::kReadsGateAndUpAsHalves, "ReadsGateAndUpAsHalves", "swigluoai"},
    {Fault::kWeighsTwice, "WeighsTwice", "odd_sizes_fp16"},
    {Fault::kWeighsTwice, "WeighsInputAndOutput", "weight_on_input"},
    {Fault::kWeighsOutputInsteadOfInput, "WeighsOutputInsteadOfInput", "weight_on_input"},
    {Fault::kBiasAfterActivation, "BiasAfterActivation", "silu_no_mul"},
    {Fault::kBiasNotWeighted, "BiasNotWeighted", "biases"},
    {Fault::kBiasNotWeighted, "BiasNotWeightedOfZero", "zero"},
    {Fault::kDropsLastSlot, "DropsLastSlot", "decode"},
    {Fault::kRoundsGateAndUp, "RoundsGateAndUp", "decode_wide"},
    {Fault::kRoundsGateOnly, "RoundsGateOnly", "gelu_tanh"},
    {Fault::kRoundsTwice, "RoundsTwice", "large"},
    {Fault::kDoesNotRoundIntermediate, "DoesNotRoundIntermediate", "odd_sizes"},
    {Fault::kRoundsY, "RoundsY", "relu2_no_mul"},
    {Fault::kRoundsY, "RoundsYFp16", "relu2_no_mul_fp16"},
    {Fault::kRoundsWeightedY, "RoundsWeightedY", "relu2_no_mul"},
    {Fault::kErfForTanh, "ErfForTanh", "gelu_tanh_fp32"},
    {Fault::kErfForTanh, "TanhForErf", "gelu_fp32"},
    {Fault::kErfForTanh, "ErfForTanhNoMul", "gelu_tanh_no_mul"},
    {Fault::kErfForTanh, "TanhForErfNoMul", "gelu_no_mul"},
    {Fault::kReluNotSquared, "ReluNotSquared", "relu2_no_mul"},
    {Fault::kIgnoresLimit, "IgnoresLimit", "swigluoai_clamped"},
    {Fault::kIgnoresLimit, "IgnoresLimitUninterleave", "swigluoai_uninterleave_clamped"},
    {Fault::kIgnoresLimitBelow, "IgnoresLimitBelow", "swigluoai_clamped"},
    {Fault::kLimitsGateBelow, "LimitsGateBelow", "swigluoai_clamped"},
    {Fault::kAlphaOne, "AlphaOne", "swigluoai_uninterleave"},
    {Fault::kForgetsBeta, "ForgetsBeta", "swigluoai"},
    {Fault::kDefaultBeta, "DefaultBeta", "swigluoai_parameters"},
    {Fault::kIgnoresExpertMap, "IgnoresExpertMap", "expert_map"},
    {Fault::kIdBelowZeroIsZero, "IdBelowZeroIsZero", "mixed_ids"},
    {Fault::kIdBelowZeroIsZero, "IdBelowZeroIsZeroAlone", "no_pairs"},
    {Fault::kIdBeyondIsLast, "IdBeyondIsLast", "mixed_ids"},
    {Fault::kIdOf32Bits, "IdOf32Bits", "mixed_int64_ids"},
    {Fault::kNanOfUnusedExpert, "NanOfUnusedExpert", "empty_experts"},
    {Fault::kNanOfUncountedPair, "NanOfUncountedPair", "mixed_ids"},
    {Fault::kHidesNan, "HidesNan", "special_relu2_fp32"},
    {Fault::kTransposedAsRows, "TransposedAsRows", "transposed"},
    {Fault::kIgnoresGap, "IgnoresGap", "rows_apart"},
    {Fault::kMinusZero, "MinusZero", "no_pairs"},
};

class FusedExpertsFaults : public testing::TestWithParam<FaultFound> {};

TEST_P(FusedExpertsFaults, IsFound) {
  const FaultFound& fault = GetParam();
  FusedExpertsModel model(case_named(fault.in));
  model.run(Order::kForward, fault.fault);
  const Rules rules = broken_rules(model.args());
  EXPECT_FALSE(rules.empty());
}

INSTANTIATE_TEST_SUITE_P(All, FusedExpertsFaults, testing::ValuesIn(kFaults),
                         [](const auto& fault) { return fault.param.what; });

}  // namespace
}  // namespace tessera::contract
