// float8_e4m3fn and its scales by the contract of quantize_fp8, in doubles. For checkers.
#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include "float_bits.hpp"
#include "tessera/schema.hpp"

namespace tessera::contract {

inline constexpr DLDataType kFloat8E4m3{dtypes::kFloat8E4m3Code, 8, 1};
inline constexpr int kFp8Nan = 0x7f;
inline constexpr int kLargestFp8 = 0x7e;

/// The value of the seven bits without the sign: 4 of the exponent, whose bias is 7, and 3 of the
/// mantissa. There are no infinities, and one NaN.
inline double fp8_magnitude_of(int bits) {
  const int exponent = bits >> 3;
  const int mantissa = bits & 7;
  if (bits == kFp8Nan) return std::numeric_limits<double>::quiet_NaN();
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
}

inline double fp8_value_of(int bits) {
  return (bits & 0x80) != 0 ? -fp8_magnitude_of(bits & 0x7f) : fp8_magnitude_of(bits & 0x7f);
}

/// All magnitudes but the NaN, ascending: the index of one is its bits.
inline const std::array<double, kFp8Nan>& fp8_magnitudes() {
  static const std::array<double, kFp8Nan> all = [] {
    std::array<double, kFp8Nan> made{};
    for (int bits = 0; bits < kFp8Nan; ++bits)
      made[static_cast<std::size_t>(bits)] = fp8_magnitude_of(bits);
    return made;
  }();
  return all;
}

/// The bits of the largest magnitude that is `magnitude` or less, which is no NaN.
inline int largest_fp8_below(double magnitude) {
  const auto& all = fp8_magnitudes();
  return static_cast<int>(std::ranges::upper_bound(all, magnitude) - all.begin()) - 1;
}

/// Rule 4 of quantize_fp8, for a quotient.
inline int fp8_bits_of(double value) {
  if (std::isnan(value)) return kFp8Nan;
  const double magnitude = std::abs(value);
  int bits = largest_fp8_below(magnitude);
  if (bits < kLargestFp8) {
    const double down = magnitude - fp8_magnitude_of(bits);
    const double up = fp8_magnitude_of(bits + 1) - magnitude;
    if (up < down || (up == down && bits % 2 == 1)) ++bits;
  }
  return bits | (std::signbit(value) ? 0x80 : 0);
}

/// Rules 1 and 2 of quantize_fp8. float32 holds every quotient of two of its values that double
/// does, once it is rounded again.
inline double fp8_scale_of(double amax, bool use_ue8m0) {
  const double least = rounded(kFloat32Format, 1e-10);
  const double scale = rounded(kFloat32Format, std::max(amax, least) / 448);
  if (!use_ue8m0) return scale;
  const int exponent = std::ilogb(scale);
  return std::ldexp(1.0, std::ldexp(1.0, exponent) == scale ? exponent : exponent + 1);
}

/// The value that becomes of x with a scale.
inline double fp8_quantized(double x, double scale) {
  return fp8_value_of(fp8_bits_of(rounded(kFloat32Format, x / scale)));
}

}  // namespace tessera::contract
