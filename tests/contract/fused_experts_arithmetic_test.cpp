// The steps of fused_experts' error bound hold what float32 arithmetic finds, and not much more.
#include "fused_experts_arithmetic.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <vector>

#include "random_numbers.hpp"

namespace tessera::contract {
namespace {

constexpr float kMax = std::numeric_limits<float>::max();

Bounded product_of(const std::vector<double>& row, const std::vector<Bounded>& vector,
                   double scale = 1, double bias = 0) {
  WeightRow weights;
  std::ranges::copy(row, weights.resize(row.size()).begin());
  weights.finish();
  BoundedVector values;
  values.assign(vector);
  return product(weights, values, scale, bias, {std::ssize(row) + 1});
}

TEST(FusedExpertsArithmetic, SumsThatFloat32HoldsAreExact) {
  const auto error = [](const std::vector<double>& row, double scale, double bias) {
    return product_of(row, {{3, 0}, {-5, 0}}, scale, bias).error;
  };
  EXPECT_EQ(product_of({1, 2}, {{3, 0}, {-5, 0}}, -4, 0.5).value, 28.5);
  EXPECT_EQ(error({1, 2}, -4, 0.5), 0);
  EXPECT_EQ(error({0, 0}, 1, 0), 0);
  EXPECT_GT(error({1, 2}, 3, 0), 0) << "a scale that is no power of two";
  // 13 * 2^20 quanta of 1, and 2^24 of them at most.
  EXPECT_EQ(error({0x1p20, 0x1p21}, 1, 1), 0);
  EXPECT_GT(error({0x1p21, 0x1p21}, 1, 1), 0);
  EXPECT_EQ(error({0x1p21, 0x1p21}, 1, 2), 0);
  EXPECT_GT(error({0x1p20, 0x1p21}, 1, 0.5), 0);
  EXPECT_EQ(error({0x1p-100, 0x1p-100}, 1, 0), 0);
  EXPECT_GT(error({0x1p-127, 0x1p-100}, 1, 0), 0) << "a subnormal weight";
  EXPECT_GT(error({1, 1}, 1, 0x1p-127), 0) << "a subnormal bias";
  EXPECT_GT(product_of({1, 1}, {{0x1p-127, 0}, {1, 0}}).error, 0);
  EXPECT_GT(product_of({1, 1}, {{0x1p-120, 0}, {1, 0}}, 0x1p-10).error, 0);
  EXPECT_GT(product_of({1, 1}, {{3, 1}, {1, 0}}).error, 1);
}

TEST(FusedExpertsArithmetic, OtherSumsHaveTheBoundOfTheirTerms) {
  // gamma(3) * (|0.1 * 7| + |0.3 * -11|), 4 tiny and the sum's own part aside.
  const Bounded sum = product_of({0.1, 0.3}, {{7, 0}, {-11, 0}});
  EXPECT_NEAR(sum.value, -2.6, 1e-15);
  EXPECT_NEAR(sum.error / (3 * 0x1p-24 * 4.0), 1, 1e-6);
  EXPECT_NEAR(product_of({0.1, 0.3}, {{7, 0}, {-11, 0}}, 0, 9).error / (3 * 0x1p-24 * 9), 1, 1e-6);
  // Errors of the vector count in full.
  EXPECT_NEAR(product_of({-0.1, 0.3}, {{7, 2}, {-11, 3}}).error, 1.1, 1e-6);
  // Subnormal numbers: 4 tiny (1 + 1) (1 + 0) for a term of 2^-140.
  EXPECT_NEAR(product_of({1}, {{0x1p-140, 0}}).error / 0x1p-123, 1, 1e-3);
}

TEST(FusedExpertsArithmetic, NansWinOverInfinitiesAndInfinitiesOverBounds) {
  const auto is_nan = [](Bounded b) { return std::isnan(b.value); };
  const auto has_no_bound = [](Bounded b) { return std::isinf(b.error); };
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(is_nan(product_of({0, 1}, {kMustBeNan, {1, 0}})));
  EXPECT_TRUE(is_nan(product_of({NAN, 1}, {{0, 0}, {1, 0}})));
  EXPECT_TRUE(is_nan(product_of({1, 1}, {{0, 0}, {1, 0}}, NAN)));
  EXPECT_TRUE(is_nan(product_of({1, 1}, {{0, 0}, {1, 0}}, 1, NAN)));
  EXPECT_TRUE(is_nan(product_of({1, 1}, {kUnbounded, kMustBeNan})));
  EXPECT_TRUE(is_nan(product_of({NAN, 1}, {{1, 0}, kUnbounded})));
  EXPECT_TRUE(has_no_bound(product_of({0, 1}, {kUnbounded, {1, 0}})));
  EXPECT_TRUE(has_no_bound(product_of({1, 1}, {{inf, 0}, {-inf, 0}})));
  EXPECT_TRUE(has_no_bound(product_of({inf, 1}, {{0, 0}, {1, 0}})));
  EXPECT_TRUE(has_no_bound(product_of({kMax, -kMax}, {{1, 0}, {1, 0}})));
  EXPECT_TRUE(has_no_bound(product_of({1, 1}, {{kMax, 0}, {1, 0}}, 1, kMax)));
  EXPECT_TRUE(has_no_bound(product_of({0x1p-10, 0}, {{0x1p120, 0}, {1, 0}}, 0x1p10)));
  EXPECT_TRUE(has_no_bound(product_of({0x1p60}, {{0x1p70, 0}}, 0x1p-100)));
  EXPECT_FALSE(has_no_bound(product_of({0x1p60}, {{0x1p60, 0}}, 0x1p-100)));
}

float in_float32(const ActivationRule& rule, float z, float m) {
  const auto limit = static_cast<float>(rule.limit);
  z = std::min(z, limit);
  m = std::clamp(m, -limit, limit) + static_cast<float>(rule.beta);
  switch (rule.activation) {
    case Activation::kGelu:
    case Activation::kGeluNoMul:
      return z * 0.5F * (1 + std::erf(z / std::numbers::sqrt2_v<float>)) * m;
    case Activation::kGeluTanh:
    case Activation::kGeluTanhNoMul:
      return z / 2 * m * (1 + std::tanh(0.7978845608F * z * (1 + 0.044715F * z * z)));
    case Activation::kRelu2NoMul:
      return std::max(z, 0.0F) * std::max(z, 0.0F);
    default:
      return m * (z / (1 + std::exp2(-1.44269504F * static_cast<float>(rule.alpha) * z)));
  }
}

ActivationRule rule_of(int activation, RandomNumbers* random) {
  FusedExpertsArgs args;
  args.activation = static_cast<Activation>(activation);
  if (random->one_in(2)) {
    args.swiglu_alpha = static_cast<float>(random->below(9) - 4) / 2;
    args.swiglu_beta = static_cast<float>(random->below(9) - 4) / 2;
    args.swiglu_limit = static_cast<float>(1 + random->below(8)) / 2;
  }
  return ActivationRule(args);
}

TEST(FusedExpertsArithmetic, ActivationsHoldWhatAllValuesWithinTheErrorsGive) {
  RandomNumbers random(1);
  // All values below are multiples of 2^-14, which float32 holds.
  const auto number = [&] { return static_cast<double>(random.below(1 << 14) - (1 << 13)) / 1024; };
  const int num_activations = static_cast<int>(std::size(kActivationNames));
  for (int i = 0; i < 4000; ++i) {
    const int activation = i % num_activations;
    const ActivationRule rule = rule_of(activation, &random);
    const double errors[] = {0, 0x1p-10, 0x1p-4, 0.5, 4};
    const double error = errors[random.below(5)];
    const Bounded gate{number(), error};
    const Bounded up{number(), error};
    const Bounded a = rounded_activation(rule, gate, up, kFloat32Format);
    double least = std::numeric_limits<double>::infinity();
    double largest = -least;
    for (int j = -8; j <= 8; ++j) {
      for (int k = -8; k <= 8; ++k) {
        const double z = gate.value + error * j / 8;
        const double m = has_gate(rule.activation) ? up.value + error * k / 8 : 1;
        const double found = in_float32(rule, static_cast<float>(z), static_cast<float>(m));
        ASSERT_LE(std::abs(found - a.value), a.error)
            << kActivationNames[activation] << " of " << z << ", " << m;
        least = std::min(least, found);
        largest = std::max(largest, found);
      }
    }
    // 200 is more than |z m| + |a| of most of them.
    EXPECT_LE(2 * a.error, 1.1 * (largest - least) + 32 * 0x1p-24 * 200)
        << kActivationNames[activation] << " of " << gate.value << ", " << up.value << " +- "
        << error;
  }
}

TEST(FusedExpertsArithmetic, ActivationsHoldTheirExtremum) {
  // Silu's least value, -0.2784645, lies between the ends of the interval, where it is larger.
  FusedExpertsArgs args;
  args.activation = Activation::kSiluNoMul;
  const Bounded a = rounded_activation(ActivationRule(args), {-1.25, 0.5}, {}, kFloat32Format);
  EXPECT_NEAR(a.value - a.error, -0.2784645, 2e-6);
}

TEST(FusedExpertsArithmetic, RoundingOfIntermediatesLeavesTheNeighbours) {
  FusedExpertsArgs args;
  args.activation = Activation::kRelu2NoMul;
  const ActivationRule rule(args);
  // 1.5^2 is a value of bfloat16; so is the neighbour below, 2.234375, but nothing between them.
  EXPECT_EQ(rounded_activation(rule, {1.5, 0}, {}, kBfloat16Format).value, 2.25);
  EXPECT_EQ(rounded_activation(rule, {1.5, 1e-4}, {}, kBfloat16Format).error, 0);
  const Bounded between = rounded_activation(rule, {1.4974, 1e-4}, {}, kBfloat16Format);
  EXPECT_EQ(between.value - between.error, 2.234375);
  EXPECT_EQ(between.value + between.error, 2.25);
  EXPECT_TRUE(std::isinf(rounded_activation(rule, {256, 0}, {}, kFloat16Format).error));
  EXPECT_FALSE(std::isinf(rounded_activation(rule, {255, 0}, {}, kFloat16Format).error));
  const ActivationRule silu{FusedExpertsArgs{}};
  EXPECT_TRUE(std::isinf(rounded_activation(silu, {300, 0}, {-300, 0}, kFloat16Format).error));
}

TEST(FusedExpertsArithmetic, ValuesMayBeKeptOrRounded) {
  const auto expect = [](Bounded value, double low, double high) {
    const Bounded found = kept_or_rounded(value, kBfloat16Format);
    EXPECT_EQ(found.value - found.error, low) << value.value;
    EXPECT_EQ(found.value + found.error, high) << value.value;
  };
  // Neighbours in bfloat16 are 1 and 1 + 2^-7.
  expect({1, 0}, 1, 1);
  expect({1 + 0x1.8p-9, 0}, 1, 1 + 0x1.8p-9);
  expect({1 + 0x1.4p-8, 0}, 1 + 0x1.4p-8, 1 + 0x1p-7);
  expect({-1 - 0x1.4p-8, 0}, -1 - 0x1p-7, -1 - 0x1.4p-8);
  expect({1 + 0x1p-8, 0x1p-12}, 1, 1 + 0x1p-7);            // either neighbour
  expect({1, 0x1p-12}, 1 - 0x1p-12, 1 + 0x1p-12);          // within the error of a value
  expect({1 + 0x1p-9, 0x1p-12}, 1, 1 + 0x1p-9 + 0x1p-12);  // below, or kept

  const Bounded kept = kept_or_rounded({0.1, 1e-9}, kFloat32Format);
  EXPECT_EQ(kept.value, 0.1);
  EXPECT_EQ(kept.error, 1e-9);
  const auto has_no_bound = [](Bounded value, FloatFormat format) {
    return std::isinf(kept_or_rounded(value, format).error);
  };
  EXPECT_TRUE(has_no_bound({65520, 0}, kFloat16Format));
  EXPECT_TRUE(has_no_bound({-65520, 0}, kFloat16Format));
  EXPECT_TRUE(has_no_bound({65519, 1}, kFloat16Format));
  EXPECT_TRUE(has_no_bound({-65519, 1}, kFloat16Format));
  EXPECT_FALSE(has_no_bound({65519, 0}, kFloat16Format));
  EXPECT_FALSE(has_no_bound({65520, 0}, kBfloat16Format));
  EXPECT_TRUE(has_no_bound({0x1.ffp127, 0}, kBfloat16Format));
  EXPECT_FALSE(has_no_bound({0x1.ffp127, 0}, kFloat32Format));
  EXPECT_TRUE(has_no_bound(kUnbounded, kFloat16Format));
  EXPECT_TRUE(std::isnan(kept_or_rounded(kMustBeNan, kFloat16Format).value));
  EXPECT_EQ(kept_or_rounded(kMustBeNan, kFloat16Format).error, 0);
}

}  // namespace
}  // namespace tessera::contract
