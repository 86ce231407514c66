// The device side of division.hpp.
#pragma once

#include <cstdint>

#include "cuda/parts/division.hpp"

namespace tessera::cuda {

/// floor(x / divisor) for x < 2^31.
__device__ __forceinline__ std::uint32_t divide(std::uint32_t x, Division division) {
  return division.multiplier != 0 ? __umulhi(x, division.multiplier) >> division.shift
                                  : x >> division.shift;
}

/// ceil(x / divisor) for x <= 2^31.
__device__ __forceinline__ std::int32_t divide_up(std::uint32_t x, Division division) {
  if (x == 0) return 0;
  return static_cast<std::int32_t>(divide(x - 1, division) + 1);
}

}  // namespace tessera::cuda
