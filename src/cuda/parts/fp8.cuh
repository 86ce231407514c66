// Conversion to float8_e4m3fn.
#pragma once

#include <cstdint>

namespace tessera::cuda {

/// The bits of the values of float8_e4m3fn nearest to two numbers, ties to even, at most 448; a NaN
/// becomes 0x7F. The first one is in the lower byte.
__device__ __forceinline__ std::uint32_t fp8x2_bits(float first, float second) {
#if __CUDA_ARCH__ >= 890
  std::uint16_t bits;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bits) : "f"(second), "f"(first));
  return bits;
#else
  const auto converted = [](float value) -> std::uint32_t {
    const std::uint32_t bits = __float_as_uint(value);
    const std::uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7f;
    std::uint32_t result = 0x7e;
    if (magnitude < __float_as_uint(0x1p-6F)) {
      // Subnormals are multiples of 2^-9, to which the sum with 2^14 is rounded.
      result = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 0x1p14F)) -
               __float_as_uint(0x1p14F);
    } else if (magnitude < __float_as_uint(448.0F)) {
      // The exponent's bias is 120 less, the mantissa 20 bits shorter.
      result = (magnitude - (120U << 23) + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
    }
    return result | (bits >> 24 & 0x80);
  };
  return converted(first) | converted(second) << 8;
#endif
}

}  // namespace tessera::cuda
