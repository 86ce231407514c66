// Division by a number that stays the same for a whole launch: a multiplication and a shift.
#pragma once

#include <bit>
#include <cstdint>

namespace tessera::cuda {

/// A multiplier m and a shift s with floor(x / divisor) = floor(x * m / 2^(32 + s)) for every
/// x < 2^31 (Granlund and Montgomery, "Division by Invariant Integers using Multiplication",
/// PLDI 1994). For a power of two m is 0, and x is shifted by s.
struct Division {
  std::uint32_t multiplier;
  std::uint32_t shift;
};

inline Division division_by(std::int32_t divisor) {
  const auto d = static_cast<std::uint32_t>(divisor);
  if (std::has_single_bit(d)) return {0, static_cast<std::uint32_t>(std::countr_zero(d))};
  const auto shift = static_cast<std::uint32_t>(std::bit_width(d) - 1);
  const std::uint64_t power = std::uint64_t{1} << (32 + shift);
  return {static_cast<std::uint32_t>((power + d - 1) / d), shift};
}

}  // namespace tessera::cuda
