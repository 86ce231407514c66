// The floating-point formats of arrays by their definition in IEEE 754, computed with doubles,
// which represent all their values. For checkers, which share no code with what they check.
#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <limits>

namespace tessera::contract {

/// A binary format of a sign, exponent bits, and a mantissa of `precision` bits, of which the first
/// is not stored.
struct FloatFormat {
  int bits;
  int precision;
  int max_exponent;  ///< exponent of the largest finite values

  /// Exponent of the smallest normal values.
  constexpr int min_exponent() const { return 1 - max_exponent; }
  constexpr std::uint32_t mantissa_mask() const { return (1U << (precision - 1)) - 1; }
  constexpr std::uint32_t sign_bit() const { return 1U << (bits - 1); }
  constexpr std::uint32_t infinity() const { return sign_bit() - 1 - mantissa_mask(); }
  /// Positive, all bits of the mantissa set: the NaN of the ops' results.
  constexpr std::uint32_t nan() const { return sign_bit() - 1; }
};

inline constexpr FloatFormat kFloat16Format{16, 11, 15};
inline constexpr FloatFormat kBfloat16Format{16, 8, 127};
inline constexpr FloatFormat kFloat32Format{32, 24, 127};

/// The format of float16, bfloat16 or float32.
inline FloatFormat format_of(DLDataType dtype) {
  if (dtype.code == kDLBfloat) return kBfloat16Format;
  return dtype.bits == 16 ? kFloat16Format : kFloat32Format;
}

inline double value_of(FloatFormat format, std::uint32_t bits) {
  const std::uint32_t magnitude = bits & (format.sign_bit() - 1);
  if (magnitude > format.infinity()) return std::numeric_limits<double>::quiet_NaN();
  double value = std::numeric_limits<double>::infinity();
  if (magnitude < format.infinity()) {
    const auto exponent = static_cast<int>(magnitude >> (format.precision - 1));
    const std::uint32_t hidden = exponent == 0 ? 0 : format.mantissa_mask() + 1;
    value = std::ldexp(
        static_cast<double>(hidden + (magnitude & format.mantissa_mask())),
        format.min_exponent() + (exponent == 0 ? 0 : exponent - 1) - (format.precision - 1));
  }
  return (bits & format.sign_bit()) != 0 ? -value : value;
}

/// The nearest value of the format, ties to even; an infinity beyond the largest.
inline double rounded(FloatFormat format, double value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int exponent = std::max(std::ilogb(value), format.min_exponent());
  const int last_place = exponent - (format.precision - 1);
  const double nearest = std::ldexp(std::nearbyint(std::ldexp(value, -last_place)), last_place);
  if (std::abs(nearest) < std::ldexp(1.0, format.max_exponent + 1)) return nearest;
  return std::copysign(std::numeric_limits<double>::infinity(), value);
}

/// The bits of a value of the format; for a NaN, the bits that the ops' results have.
inline std::uint32_t bits_of(FloatFormat format, double value) {
  if (std::isnan(value)) return format.nan();
  const std::uint32_t sign = std::signbit(value) ? format.sign_bit() : 0;
  if (std::isinf(value)) return sign | format.infinity();
  if (value == 0) return sign;
  const int exponent = std::max(std::ilogb(value), format.min_exponent());
  const auto mantissa =
      static_cast<std::uint32_t>(std::ldexp(std::abs(value), format.precision - 1 - exponent));
  // A subnormal lacks the hidden bit, which adds 1 to the exponent of others.
  return sign |
         ((static_cast<std::uint32_t>(exponent - format.min_exponent()) << (format.precision - 1)) +
          mantissa);
}

/// Makes the thread round to nearest and keep subnormals, until destroyed.
class DefaultFloatEnvironment {
 public:
  DefaultFloatEnvironment() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  DefaultFloatEnvironment(const DefaultFloatEnvironment&) = delete;
  DefaultFloatEnvironment& operator=(const DefaultFloatEnvironment&) = delete;
  ~DefaultFloatEnvironment() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

}  // namespace tessera::contract
