// The elementary functions of select_experts are as accurate as the contract says.
#include "select_experts_arithmetic.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace tessera::contract {
namespace {

/// The distance of a float32 value from the exact one, in units of the last place of the latter.
double error_in_ulp(float found, long double exact) {
  const int exponent = std::max(exact == 0 ? -126 : std::ilogb(exact), -126);
  return static_cast<double>(std::abs(static_cast<long double>(found) - exact) /
                             std::ldexp(1.0L, exponent - 23));
}

/// The largest error over a sample of all floats whose bits lie in [first, last].
template <typename Found, typename Exact>
double largest_error(float first, float last, Found found, Exact exact) {
  constexpr std::uint32_t kStep = 997;
  double largest = 0;
  const auto end = std::bit_cast<std::uint32_t>(last);
  for (auto bits = std::bit_cast<std::uint32_t>(first); bits <= end; bits += kStep) {
    const auto x = std::bit_cast<float>(bits);
    largest = std::max(largest, error_in_ulp(found(x), exact(static_cast<long double>(x))));
  }
  return largest;
}

TEST(SelectExpertsArithmetic, TheExponentialIsWithin092Ulp) {
  const auto exact = [](long double x) { return std::exp(x); };
  EXPECT_LE(largest_error(-0.0F, -104, contract_exponential, exact), 0.92);
  EXPECT_EQ(contract_exponential(0), 1);
  EXPECT_EQ(contract_exponential(-0.0F), 1);
  EXPECT_EQ(contract_exponential(std::nextafter(-104.0F, -105.0F)), 0);
  EXPECT_EQ(contract_exponential(-std::numeric_limits<float>::infinity()), 0);
}

TEST(SelectExpertsArithmetic, Log1pIsWithin2Ulp) {
  const auto exact = [](long double y) { return std::log1p(y); };
  EXPECT_LE(largest_error(0, 1, contract_log1p, exact), 2);
  EXPECT_EQ(contract_log1p(0), 0);
}

TEST(SelectExpertsArithmetic, SoftplusGoesFromTheExponentialToTheIdentity) {
  EXPECT_EQ(contract_softplus(100), 100);
  EXPECT_EQ(contract_softplus(std::numeric_limits<float>::infinity()),
            std::numeric_limits<float>::infinity());
  EXPECT_FLOAT_EQ(contract_softplus(0), 0.6931471806F);
  EXPECT_FLOAT_EQ(contract_softplus(1), 1.3132616875F);
  EXPECT_FLOAT_EQ(contract_softplus(-1), 0.3132616875F);
  EXPECT_FLOAT_EQ(contract_softplus(-15), 3.0590227e-7F);
}

}  // namespace
}  // namespace tessera::contract
