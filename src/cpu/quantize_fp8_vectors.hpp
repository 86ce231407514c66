// The columns of quantize_fp8 in loops that compilers vectorise. Included by the source of each
// instruction set, which is compiled for that alone: nothing here has a name that the linker could
// share with other sources.
#pragma once

#include <cstdint>
#include <cstring>

namespace tessera::cpu {
namespace {

/// Columns that are widened to floats at once.
constexpr std::int64_t kFp8Columns = 64;

constexpr std::int32_t kMagnitude = 0x7fffffff;
constexpr std::int32_t kInfinityBits = 0x7f800000;
constexpr std::int32_t kLargestFp8Bits = 0x43e00000;         // 448
constexpr std::int32_t kSmallestNormalFp8Bits = 0x3c800000;  // 2^-6

template <typename Isa, typename T>
void widen_columns(const T* x, float* to) {
  for (std::int64_t i = 0; i < kFp8Columns; i += Isa::kLanes) Isa::store(to + i, Isa::widen(x + i));
}

/// Calls `use` with 64 floats, the first of their columns and the number of columns: 64 but for the
/// last ones, whose floats end with zeros.
template <typename Isa, typename T, typename Use>
void for_each_piece(const T* x, std::int64_t num_columns, const Use& use) {
  float wide[kFp8Columns];
  std::int64_t column = 0;
  for (; num_columns - column >= kFp8Columns; column += kFp8Columns) {
    widen_columns<Isa>(x + column, wide);
    use(wide, column, kFp8Columns);
  }
  if (column == num_columns) return;
  T last[kFp8Columns] = {};
  std::memcpy(last, x + column, static_cast<std::size_t>(num_columns - column) * sizeof(T));
  widen_columns<Isa>(last, wide);
  use(wide, column, num_columns - column);
}

template <typename Isa, typename T>
std::int32_t largest_magnitude(const T* x, std::int64_t num_columns) {
  std::int32_t largest[kFp8Columns] = {};
  for_each_piece<Isa>(x, num_columns, [&](const float* wide, std::int64_t, std::int64_t) {
    for (std::int64_t i = 0; i < kFp8Columns; ++i) {
      std::int32_t bits = __builtin_bit_cast(std::int32_t, wide[i]) & kMagnitude;
      bits = bits < kInfinityBits ? bits : 0;
      largest[i] = largest[i] < bits ? bits : largest[i];
    }
  });
  std::int32_t of_all = 0;
  for (const std::int32_t one : largest) of_all = of_all < one ? one : of_all;
  return of_all;
}

/// The bits of the nearest value of float8_e4m3fn. Without branches, which keep compilers from
/// vectorising.
inline std::int32_t fp8_bits(float value) {
  const auto bits = __builtin_bit_cast(std::int32_t, value);
  const std::int32_t magnitude = bits & kMagnitude;
  const std::int32_t clamped = magnitude < kLargestFp8Bits ? magnitude : kLargestFp8Bits;
  // Values from 2^e on are multiples of 2^(e - 3), as are the floats from 2^(e + 20) on, to which
  // the sum is rounded. All subnormals are multiples of 2^-9.
  std::int32_t exponent = clamped & kInfinityBits;
  exponent = exponent < kSmallestNormalFp8Bits ? kSmallestNormalFp8Bits : exponent;
  const std::int32_t rounder = exponent + (20 << 23);
  const float sum = __builtin_bit_cast(float, clamped) + __builtin_bit_cast(float, rounder);
  const std::int32_t units = __builtin_bit_cast(std::int32_t, sum) - rounder;
  // 8 units are the hidden bit, which adds 1 to the exponent of all but subnormals.
  const std::int32_t rounded = ((exponent - kSmallestNormalFp8Bits) >> 20) + units;
  const std::int32_t is_nan = (kInfinityBits - magnitude) >> 31;  // all bits, or none
  return (is_nan & 0x7f) | (~is_nan & (rounded | (bits >> 24 & 0x80)));
}

template <typename Isa, typename T>
void quantize_columns(const T* x, std::int64_t num_columns, float scale, std::uint8_t* values) {
  for_each_piece<Isa>(x, num_columns,
                      [&](const float* wide, std::int64_t column, std::int64_t count) {
                        std::uint8_t bytes[kFp8Columns];
                        for (std::int64_t i = 0; i < kFp8Columns; ++i) {
                          bytes[i] = static_cast<std::uint8_t>(fp8_bits(wide[i] / scale));
                        }
                        std::memcpy(values + column, bytes, static_cast<std::size_t>(count));
                      });
}

}  // namespace
}  // namespace tessera::cpu
