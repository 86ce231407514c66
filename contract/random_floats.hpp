// Random floating-point numbers for cases, as bits of any format.
#pragma once

#include <dlpack/dlpack.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "float_bits.hpp"
#include "random_numbers.hpp"

namespace tessera::contract {

/// The kind of numbers in a case.
enum class FloatValues {
  kOrdinary,    ///< a few orders of magnitude, both signs
  kAnyBits,     ///< all patterns of bits equally likely
  kSpecial,     ///< about half of them zeros, infinities, NaNs, the smallest or the largest
  kSubnormal,   ///< subnormal or nearly so, as are the products with weights
  kHuge,        ///< close to the largest: many sums overflow
  kCancelling,  ///< nearly the opposite of the one before, as the op's cases arrange
};
inline constexpr int kNumFloatValues = 6;

/// The data type of arrays of this format.
DLDataType dtype_of(FloatFormat format);

/// A random number of `count` bits.
std::uint32_t random_bits(RandomNumbers& random, int count);

/// Either sign, any mantissa, and a stored exponent in [low, high].
std::uint32_t float_with_exponent(FloatFormat format, std::int64_t low, std::int64_t high,
                                  RandomNumbers& random);

std::uint32_t random_float(FloatFormat format, FloatValues values, RandomNumbers& random);

/// Numbers of this format in memory.
std::vector<std::byte> bytes_of(const std::vector<std::uint32_t>& bits, FloatFormat format);

}  // namespace tessera::contract
