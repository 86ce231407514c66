// The checker of moe_sum accepts right outputs and names the rule that wrong ones break.
#include "moe_sum_checker.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "float_bits.hpp"
#include "moe_sum_cases.hpp"

namespace tessera::contract {
namespace {

using Rules = std::vector<std::string>;

constexpr DLDataType kFp32{kDLFloat, 32, 1};
constexpr DLDataType kBf16{kDLBfloat, 16, 1};
constexpr float kInf = std::numeric_limits<float>::infinity();

Rules broken_rules(const MoeSumArgs& args) {
  Rules rules;
  for (const Violation& v : check_moe_sum(args)) rules.push_back(v.rule);
  return rules;
}

/// Tokens of two slots and two columns in float32.
struct ByHand {
  std::vector<float> input = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> weights = {1, 10, 100, 1000};
  std::vector<float> output = {31, 42, 7500, 8600};

  MoeSumArgs args() {
    MoeSumArgs a;
    a.input = TensorView::of(input.data(), kFp32, {2, 2, 2});
    a.topk_weights = TensorView::of(weights.data(), kFp32, {2, 2});
    a.output = TensorView::of(output.data(), kFp32, {2, 2});
    return a;
  }
};

TEST(MoeSumChecker, AcceptsOutputsWrittenByHand) {
  ByHand example;
  EXPECT_EQ(broken_rules(example.args()), Rules{});
}

TEST(MoeSumChecker, SaysWhereWhatWasExpectedAndWhatWasFound) {
  ByHand example;
  example.output[3] = std::nextafter(8600.0F, 0.0F);
  const auto near = check_moe_sum(example.args());
  ASSERT_EQ(near.size(), 1U);
  EXPECT_EQ(near[0].rule, "exact_bits");
  EXPECT_EQ(near[0].array, "output");
  EXPECT_EQ(near[0].position, 3);
  EXPECT_EQ(near[0].expected, 8600.0);
  EXPECT_EQ(near[0].found, double{example.output[3]});
  EXPECT_EQ(near[0].message,
            "exact_bits: output[1, 1]: expected 8600.0 (0x46066000), "
            "found 8599.9990234375 (0x46065fff)");
  example.output[3] = -8600;
  const auto far = check_moe_sum(example.args());
  ASSERT_EQ(far.size(), 2U);
  EXPECT_EQ(far[0].rule, "error_bound");
  EXPECT_EQ(far[0].message,
            "error_bound: output[1, 1]: expected a value in [8599.9990234375, 8600.0009765625], "
            "found -8600.0");
  example.output[3] = NAN;
  EXPECT_EQ(check_moe_sum(example.args())[1].message,
            "exact_bits: output[1, 1]: expected 8600.0 (0x46066000), found NaN (0x7fc00000)");
  example.output[3] = 0x1p-149F;
  EXPECT_TRUE(check_moe_sum(example.args())[1].message.ends_with(" (0x00000001)"));
}

TEST(MoeSumChecker, NumbersAreWhatPythonsJsonReads) {
  EXPECT_EQ(Number(17).text(), "17");
  EXPECT_EQ(Number(std::int64_t{-1} << 62).text(), "-4611686018427387904");
  EXPECT_EQ(Number(1.0).text(), "1.0");
  EXPECT_EQ(Number(-0.0).text(), "-0.0");
  EXPECT_EQ(Number(0.1).text(), "0.1");
  EXPECT_EQ(Number(1e-320).text(), "1e-320");
  EXPECT_EQ(Number(1e300).text(), "1e+300");
  EXPECT_EQ(Number(double{NAN}).text(), "NaN");
  EXPECT_EQ(Number(double{kInf}).text(), "Infinity");
  EXPECT_EQ(Number(-double{kInf}).text(), "-Infinity");
}

/// One element of k slots: the rules that a value of the output breaks.
Rules rules_of(std::vector<float> x, std::vector<float> w, float found) {
  MoeSumArgs args;
  const auto k = static_cast<std::int64_t>(x.size());
  args.input = TensorView::of(x.data(), kFp32, {1, k, 1});
  if (!w.empty()) args.topk_weights = TensorView::of(w.data(), kFp32, {1, k});
  args.output = TensorView::of(&found, kFp32, {1, 1});
  return broken_rules(args);
}

TEST(MoeSumChecker, ErrorBoundIsThatOfTheContract) {
  // k = 2: gamma * A is a little above 2 * 2^-24 * 3 = 6 * 2^-24, and the spacing there 4 * 2^-24:
  // one value on both sides of 3 is within the bound and its rounding, or two halves.
  const float above = std::nextafter(3.0F, 4.0F);
  const float two_above = std::nextafter(above, 4.0F);
  EXPECT_EQ(rules_of({1, 2}, {}, 3), Rules{});
  EXPECT_EQ(rules_of({1, 2}, {}, above), Rules{"exact_bits"});
  EXPECT_EQ(rules_of({1, 2}, {}, two_above), Rules{"exact_bits"});
  EXPECT_EQ(rules_of({1, 2}, {}, std::nextafter(two_above, 4.0F)),
            (Rules{"error_bound", "exact_bits"}));
  // The bound grows with the terms, not with their sum.
  EXPECT_EQ(rules_of({1e8F, -1e8F, 1}, {}, 0), Rules{"exact_bits"});
  EXPECT_EQ(rules_of({1e8F, -1e8F, 1}, {}, 35), Rules{"exact_bits"});
  EXPECT_EQ(rules_of({1e8F, -1e8F, 1}, {}, 38), (Rules{"error_bound", "exact_bits"}));
  // Underflow of products: k * 2^-149.
  EXPECT_EQ(rules_of({0x1p-100F, 0x1p-100F}, {0x1p-100F, 0x1p-100F}, 0x1p-148F),
            Rules{"exact_bits"});
  EXPECT_EQ(rules_of({0x1p-100F, 0x1p-100F}, {0x1p-100F, 0x1p-100F}, 0x1.8p-148F),
            (Rules{"error_bound", "exact_bits"}));
}

TEST(MoeSumChecker, NansAndInfinitiesHaveNoNeighbours) {
  const Rules both = {"error_bound", "exact_bits"};
  const auto nan = std::bit_cast<float>(0x7fffffffU);
  const auto other_nan = std::bit_cast<float>(0xffc00000U);
  EXPECT_EQ(rules_of({1, other_nan}, {}, nan), Rules{});
  EXPECT_EQ(rules_of({1, other_nan}, {}, other_nan), Rules{"exact_bits"});
  EXPECT_EQ(rules_of({1, other_nan}, {}, 1), both);
  EXPECT_EQ(rules_of({kInf, -kInf}, {}, nan), Rules{});
  EXPECT_EQ(rules_of({kInf, -kInf}, {}, 0), both);
  EXPECT_EQ(rules_of({kInf}, {0}, nan), Rules{});
  EXPECT_EQ(rules_of({1, kInf}, {}, kInf), Rules{});
  EXPECT_EQ(rules_of({1, kInf}, {}, -kInf), both);
  EXPECT_EQ(rules_of({1, kInf}, {}, nan), both);
  EXPECT_EQ(rules_of({1, 2}, {}, nan), both);
  EXPECT_EQ(rules_of({1, 2}, {}, kInf), both);
}

TEST(MoeSumChecker, OverflowHasNoBound) {
  constexpr float kMax = std::numeric_limits<float>::max();
  EXPECT_EQ(rules_of({kMax, kMax, -kMax}, {}, kInf), Rules{});
  EXPECT_EQ(rules_of({kMax, kMax, -kMax}, {}, kMax), Rules{"exact_bits"});
  EXPECT_EQ(rules_of({-kMax, -kMax, kInf}, {}, std::bit_cast<float>(0x7fffffffU)), Rules{});
  EXPECT_EQ(rules_of({kMax, kInf}, {}, kInf), Rules{});
}

TEST(MoeSumChecker, ZerosOfBothSignsAreNear) {
  EXPECT_EQ(rules_of({-0.0F}, {}, 0.0F), Rules{"exact_bits"});
  EXPECT_EQ(rules_of({-0.0F}, {}, -0.0F), Rules{});
}

/// Programs that sum in another way.
template <typename Sum>
Rules rules_of_program(const MoeSumCase& c, Sum sum) {
  const CaseArguments made = make_arguments(c, 1);
  auto& args = made.as<MoeSumArgs>();
  std::vector<float> x(static_cast<std::size_t>(c.top_k));
  std::vector<std::uint16_t> output(static_cast<std::size_t>(c.num_tokens * c.hidden_size));
  args.output = TensorView::of(output.data(), kBf16, {c.num_tokens, c.hidden_size});
  const auto* const input = static_cast<const std::uint16_t*>(args.input.data);
  const auto* const weights = static_cast<const float*>(args.topk_weights.data);
  for (std::int64_t t = 0; t < c.num_tokens; ++t) {
    for (std::int64_t h = 0; h < c.hidden_size; ++h) {
      for (std::int64_t s = 0; s < c.top_k; ++s) {
        const std::uint16_t bits = input[(t * c.top_k + s) * c.hidden_size + h];
        x[static_cast<std::size_t>(s)] = static_cast<float>(value_of(c.format, bits));
      }
      const double result = rounded(c.format, sum(x, weights + t * c.top_k));
      output[static_cast<std::size_t>(t * c.hidden_size + h)] =
          static_cast<std::uint16_t>(bits_of(c.format, result));
    }
  }
  return broken_rules(args);
}

TEST(MoeSumChecker, OtherOrdersKeepTheErrorBound) {
  for (const FloatValues values : {FloatValues::kOrdinary, FloatValues::kCancelling,
                                   FloatValues::kSubnormal, FloatValues::kHuge}) {
    MoeSumCase c;
    c.num_tokens = 300;
    c.top_k = 9;
    c.hidden_size = 64;
    c.weighted = true;
    c.values = values;
    const Rules backwards = rules_of_program(c, [](const std::vector<float>& x, const float* w) {
      float sum = 0;
      for (std::size_t s = x.size(); s-- > 0;) {
        const float product = w[s] * x[s];
        sum = product + sum;
      }
      return sum;
    });
    EXPECT_NE(backwards, (Rules{"error_bound", "exact_bits"})) << static_cast<int>(values);
    if (values == FloatValues::kCancelling) {
      EXPECT_EQ(backwards, Rules{"exact_bits"});
    }
    const Rules doubles = rules_of_program(c, [](const std::vector<float>& x, const float* w) {
      double sum = 0;
      for (std::size_t s = 0; s < x.size(); ++s) sum += double{w[s]} * double{x[s]};
      return sum;
    });
    EXPECT_NE(doubles, (Rules{"error_bound", "exact_bits"})) << static_cast<int>(values);
  }
}

TEST(MoeSumChecker, SumsRoundedToTheOutputsTypeBreakTheErrorBound) {
  MoeSumCase c;
  c.num_tokens = 20;
  c.top_k = 8;
  c.hidden_size = 64;
  c.weighted = true;
  const Rules rules = rules_of_program(c, [&](const std::vector<float>& x, const float* w) {
    double sum = 0;
    for (std::size_t s = 0; s < x.size(); ++s) sum = rounded(c.format, sum + double{w[s]} * x[s]);
    return sum;
  });
  EXPECT_EQ(rules, (Rules{"error_bound", "exact_bits"}));
}

TEST(MoeSumChecker, RefusesWhatACallRefuses) {
  ByHand example;
  const auto expect = [&](auto change, const char* rule, const std::string& array) {
    MoeSumArgs args = example.args();
    change(&args);
    const auto violations = check_moe_sum(args);
    ASSERT_EQ(violations.size(), 1U) << rule << " " << array;
    EXPECT_EQ(violations[0].rule, rule);
    EXPECT_EQ(violations[0].array, array);
  };
  expect([](MoeSumArgs* a) { a->input.dtype.code = kDLInt; }, "valid_inputs", "input");
  expect([](MoeSumArgs* a) { a->input.ndim = 2; }, "valid_inputs", "input");
  expect([](MoeSumArgs* a) { a->input.strides[2] = 2; }, "valid_inputs", "input");
  expect([](MoeSumArgs* a) { a->input.strides[1] = 1; }, "valid_inputs", "input");
  expect([](MoeSumArgs* a) { a->input.data = nullptr; }, "valid_inputs", "input");
  expect([](MoeSumArgs* a) { a->input.shape[1] = 0; }, "valid_inputs", "input");
  expect([](MoeSumArgs* a) { a->topk_weights.dtype.bits = 16; }, "valid_inputs", "topk_weights");
  expect([](MoeSumArgs* a) { a->topk_weights.shape[1] = 3; }, "valid_inputs", "topk_weights");
  expect([](MoeSumArgs* a) { a->topk_weights.contiguous = false; }, "valid_inputs", "topk_weights");
  expect([](MoeSumArgs* a) { a->output.shape[0] = 1; }, "output_sizes", "output");
  expect([](MoeSumArgs* a) { a->output.shape[1] = 1; }, "output_sizes", "output");
  expect([](MoeSumArgs* a) { a->output.dtype = kBf16; }, "output_sizes", "output");
  expect([](MoeSumArgs* a) { a->output.data = nullptr; }, "output_sizes", "output");
}

TEST(MoeSumChecker, SaysWhatIsWrongWithAnOutput) {
  ByHand example;
  const auto found = [&](auto change) {
    MoeSumArgs args = example.args();
    change(&args.output);
    const auto violations = check_moe_sum(args);
    return violations.empty() ? std::string() : violations[0].message;
  };
  const std::string start =
      "output_sizes: output: expected float32[2, 2] in contiguous rows, found ";
  EXPECT_EQ(found([](TensorView* v) { v->shape[1] = 1; }), start + "float32[2, 1]");
  EXPECT_EQ(found([](TensorView* v) { v->dtype = kBf16; }), start + "bfloat16[2, 2]");
  EXPECT_EQ(found([](TensorView* v) { v->dtype.lanes = 2; }),
            start + "dtype(code 2, 32 bits, 2 lanes)[2, 2]");
  EXPECT_EQ(found([](TensorView* v) { v->dtype = {6, 8, 1}; }), start + "bool[2, 2]");
  EXPECT_EQ(found([](TensorView* v) { v->dtype = {12, 8, 1}; }), start + "float8_e5m2[2, 2]");
  EXPECT_EQ(found([](TensorView* v) { v->data = nullptr; }),
            start + "float32[2, 2] without memory");
  EXPECT_EQ(found([](TensorView* v) { v->data = static_cast<char*>(v->data) + 2; }),
            start + "float32[2, 2], 2 bytes past an address of their alignment");
  EXPECT_EQ(found([](TensorView* v) {
              *v = strided(*v, {1, 2});
            }),
            start + "float32[2, 2] with strides [1, 2]");
  EXPECT_EQ(found([](TensorView* v) { *v = {}; }), start + "none");
}

}  // namespace
}  // namespace tessera::contract
