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

/// ceil(count / block_size), for the arguments of any op's kernel.
template <typename Args>
__device__ __forceinline__ std::int32_t blocks_of(const Args& args, std::uint32_t count) {
  if (count == 0) return 0;
  return static_cast<std::int32_t>(divide(count - 1, args.block_division) + 1);
}

}  // namespace tessera::cuda
