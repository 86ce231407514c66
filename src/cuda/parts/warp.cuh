// What concerns all lanes of a warp.
#pragma once

namespace tessera::cuda {

inline constexpr unsigned kAllLanes = ~0u;

/// A value that is the same in all lanes, so that the compiler knows it.
template <typename T>
__device__ __forceinline__ T uniform(T value) {
  return __shfl_sync(kAllLanes, value, 0);
}

}  // namespace tessera::cuda
