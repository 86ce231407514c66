// The device side of layout.hpp.
#pragma once

#include "cuda/parts/layout.hpp"

namespace tessera::cuda {

/// The array that a section of `memory` holds.
template <typename T>
__device__ __forceinline__ T* carve(void* memory, Section<T> section) {
  return reinterpret_cast<T*>(static_cast<unsigned char*>(memory) + section.begin);
}

}  // namespace tessera::cuda
