// Conversions between float32 and the 16-bit floating-point types, from float8_e4m3fn, and the
// floating-point environment in which results have the same bits everywhere.
#pragma once

#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>

namespace tessera::cpu {

struct Float16 {
  std::uint16_t bits;
};
struct Bfloat16 {
  std::uint16_t bits;
};
struct Float8E4m3 {
  std::uint8_t bits;
};

/// Four vectors of elements that were in float8_e4m3fn: of each half those with even indices, and
/// those with odd ones. Isa: what has the type of the vectors, which loses its attributes as a
/// template argument.
template <typename Isa>
struct Fp8Parts {
  typename Isa::Floats first_even;
  typename Isa::Floats first_odd;
  typename Isa::Floats last_even;
  typename Isa::Floats last_odd;
};

/// The NaN of results: positive, all bits of the mantissa set. Its upper half is the NaN of
/// bfloat16 results.
inline constexpr std::uint32_t kNanBits = 0x7fffffff;
inline constexpr std::uint16_t kNanBits16 = 0x7fff;

inline float to_float(float value) { return value; }

inline float to_float(Bfloat16 value) {
  return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}

inline float to_float(Float16 value) {
  const std::uint32_t sign = (value.bits & 0x8000U) << 16;
  const std::uint32_t magnitude = (value.bits & 0x7fffU) << 13;
  if (magnitude >= 0x7c00U << 13) return std::bit_cast<float>(sign | 0x7f800000U | magnitude);
  // The exponent's bias is 112 less; multiplying by 2^112 makes subnormals normal.
  return std::bit_cast<float>(
      sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112F));
}

inline float to_float(Float8E4m3 value) {
  const std::uint32_t sign = (value.bits & 0x80U) << 24;
  const std::uint32_t magnitude = value.bits & 0x7fU;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | kNanBits);
  // The exponent's bias is 120 less; multiplying by 2^120 makes subnormals normal.
  return std::bit_cast<float>(
      sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 20) * 0x1p120F));
}

/// Rounds to the nearest value of T, ties to even; every NaN becomes the NaN of results.
template <typename T>
T round_to(float value);

template <>
inline float round_to<float>(float value) {
  return std::isnan(value) ? std::bit_cast<float>(kNanBits) : value;
}

template <>
inline Bfloat16 round_to<Bfloat16>(float value) {
  if (std::isnan(value)) return {kNanBits16};
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline Float16 round_to<Float16>(float value) {
  if (std::isnan(value)) return {kNanBits16};
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = bits >> 16 & 0x8000;
  std::uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude >= std::bit_cast<std::uint32_t>(65520.0F)) {
    magnitude = 0x7c00;
  } else if (magnitude >= std::bit_cast<std::uint32_t>(0x1p-14F)) {
    magnitude = (magnitude - (112U << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  } else {
    // A subnormal, a multiple of 2^-24: the sum with 0.5 is rounded to that.
    magnitude = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) -
                std::bit_cast<std::uint32_t>(0.5F);
  }
  return {static_cast<std::uint16_t>(sign | magnitude)};
}

/// Sets the default floating-point environment, which rounds to nearest, keeps subnormals and traps
/// nothing. The destructor restores the caller's environment and its exception flags.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;
  DefaultFloatingPoint& operator=(const DefaultFloatingPoint&) = delete;
  ~DefaultFloatingPoint() { std::fesetenv(&callers_); }

 private:
  std::fenv_t callers_;
};

}  // namespace tessera::cpu
