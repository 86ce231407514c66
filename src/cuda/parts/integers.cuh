// Integers of 32 and 64 bits.
#pragma once

#include <cstdint>

namespace tessera::cuda {

/// Element `index` of an array of int32 or int64.
__device__ __forceinline__ std::int64_t integer_at(const void* array, bool is_64_bit,
                                                   std::int64_t index) {
  return is_64_bit ? static_cast<const std::int64_t*>(array)[index]
                   : static_cast<const std::int32_t*>(array)[index];
}

}  // namespace tessera::cuda
