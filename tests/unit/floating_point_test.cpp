// The conversions of 16-bit floating-point types: the library's and the checkers', which share no
// code, agree on every value.
#include "cpu/floating_point.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>

#include "float_bits.hpp"
#include "random_numbers.hpp"

namespace tessera {
namespace {

using contract::FloatFormat;

TEST(FloatBits, AgreeWithTheHardwareOnFloat32) {
  contract::RandomNumbers random(1);
  for (int i = 0; i < 200000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random.below(std::int64_t{1} << 32));
    const auto value = std::bit_cast<float>(bits);
    if (std::isnan(value)) continue;
    ASSERT_EQ(contract::value_of(contract::kFloat32Format, bits), value) << bits;
    ASSERT_EQ(contract::bits_of(contract::kFloat32Format, value), bits);
    // Between this value and the next, at every distance.
    const double between =
        value + (std::nextafter(value, INFINITY) - double{value}) * random.below(1025) / 1024;
    ASSERT_EQ(contract::rounded(contract::kFloat32Format, between), static_cast<float>(between))
        << bits;
  }
}

template <typename T>
void expect_agreement(FloatFormat format) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = cpu::to_float(T{static_cast<std::uint16_t>(bits)});
    const double expected = contract::value_of(format, bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_EQ(cpu::round_to<T>(value).bits, 0x7fff);
      continue;
    }
    ASSERT_EQ(value, expected) << bits;
    ASSERT_EQ(std::signbit(value), std::signbit(expected)) << bits;
    ASSERT_EQ(cpu::round_to<T>(value).bits, bits);
    ASSERT_EQ(contract::bits_of(format, expected), bits);
  }
  // All of the upper 20 bits, and what decides on rounding: the middle, and what is next to it.
  for (std::uint64_t upper = 0; upper < std::uint64_t{1} << 32; upper += 0x1000) {
    for (const std::uint32_t lower : {0x000U, 0x001U, 0x7ffU, 0x800U, 0x801U, 0xfffU}) {
      const auto value = std::bit_cast<float>(static_cast<std::uint32_t>(upper) | lower);
      ASSERT_EQ(cpu::round_to<T>(value).bits,
                contract::bits_of(format, contract::rounded(format, value)))
          << upper << " " << lower;
    }
  }
}

TEST(FloatingPoint, OfFloat16IsThatOfTheCheckers) {
  expect_agreement<cpu::Float16>(contract::kFloat16Format);
}

TEST(FloatingPoint, OfBfloat16IsThatOfTheCheckers) {
  expect_agreement<cpu::Bfloat16>(contract::kBfloat16Format);
}

TEST(FloatingPoint, OfFloat32OnlyChangesNans) {
  EXPECT_EQ(std::bit_cast<std::uint32_t>(cpu::round_to<float>(-0.0F)), 0x80000000U);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(cpu::round_to<float>(-NAN)), 0x7fffffffU);
}

}  // namespace
}  // namespace tessera
