// The tables of fused_experts' cases: right programs pass on all of them, and each fault of a wrong
// one is found by a case of the table.
#include "fused_experts_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "fused_experts_checker.hpp"
#include "fused_experts_model.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace tessera::contract {
namespace {

const FusedExpertsCase& case_named(const std::string& name) {
  const auto cases = fused_experts_cases();
  const auto found = std::ranges::find(cases, name, &FusedExpertsCase::name);
  EXPECT_NE(found, cases.end()) << name;
  return *found;
}

constexpr Order kOrders[] = {Order::kForward, Order::kBackward, Order::kParts};
constexpr Rows kRows[] = {Rows::kFloat32, Rows::kRounded};

class FusedExpertsCases : public testing::TestWithParam<std::string> {};

TEST_P(FusedExpertsCases, AnyOrderOfTheSumsAndEitherKindOfRowsKeepTheContract) {
  FusedExpertsModel model(case_named(GetParam()));
  double used = 0;
  for (const Order order : kOrders) {
    for (const Rows rows : kRows) {
      model.run(order, rows);
      for (const Violation& violation : check_fused_experts(model.args())) {
        ADD_FAILURE() << static_cast<int>(order) << ", " << static_cast<int>(rows) << ": "
                      << violation.message;
      }
      used = std::max(used, fused_experts_bound_used(model.args()));
    }
  }
  EXPECT_LE(used, 1);
  RecordProperty("bound_used", std::to_string(used));
}

INSTANTIATE_TEST_SUITE_P(Table, FusedExpertsCases, testing::ValuesIn([] {
                           std::vector<std::string> names;
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

TEST(FusedExpertsRandomCases, AnyOrderOfTheSumsAndEitherKindOfRowsKeepTheContract) {
  for (std::uint64_t seed = 0; seed < 300 && !HasFailure(); ++seed) {
    FusedExpertsModel model(random_fused_experts_case(seed, seed % 2 == 0 ? 200 : 2000), seed);
    for (int i = 0; i < 12; ++i) {
      const Order order = kOrders[i / 4];
      const Rows rows = kRows[i / 2 % 2];
      const bool flushes = i % 2 != 0;
      if (flushes) {
        const FlushesSubnormals environment;
        model.run(order, rows);
      } else {
        model.run(order, rows);
      }
      for (const Violation& violation : check_fused_experts(model.args())) {
        ADD_FAILURE() << seed << ", " << static_cast<int>(order) << ", " << static_cast<int>(rows)
                      << ", " << flushes << ": " << violation.message;
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
    {Fault::kRoundsY, "RoundsY", "prefill"},
    {Fault::kRoundsY, "RoundsYFp16", "one_intermediate"},
    {Fault::kRoundsSum, "RoundsSum", "relu2_no_mul"},
    {Fault::kRoundsSum, "RoundsSumFp16", "relu2_no_mul_fp16"},
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
  for (const Rows rows : kRows) {
    model.run(Order::kForward, rows, fault.fault);
    EXPECT_FALSE(check_fused_experts(model.args()).empty()) << static_cast<int>(rows);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FusedExpertsFaults, testing::ValuesIn(kFaults),
                         [](const auto& fault) { return fault.param.what; });

}  // namespace
}  // namespace tessera::contract
