// Division by the block size without a division.
#pragma once

#include <bit>
#include <cstdint>

namespace tessera::cuda {

/// A multiplier m and a shift s such that floor(x / block_size) = floor(x * m / 2^(32 + s)) for
/// every x < 2^31 (Granlund and Montgomery, "Division by Invariant Integers using Multiplication",
/// PLDI 1994); for a power of two m is 0, and s what to shift by.
struct BlockDivision {
  std::uint32_t multiplier;
  std::uint32_t shift;
};

inline BlockDivision division_by(std::int32_t block_size) {
  const auto size = static_cast<std::uint32_t>(block_size);
  if (std::has_single_bit(size)) return {0, static_cast<std::uint32_t>(std::countr_zero(size))};
  const auto shift = static_cast<std::uint32_t>(std::bit_width(size) - 1);
  const std::uint64_t power = std::uint64_t{1} << (32 + shift);
  return {static_cast<std::uint32_t>((power + size - 1) / size), shift};
}

}  // namespace tessera::cuda
