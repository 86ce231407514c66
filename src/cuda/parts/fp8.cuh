// Conversion to and from float8_e4m3fn.
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

/// Bits of the magnitude of a finite number, else 0. Magnitudes are in the order of their bits.
__device__ __forceinline__ std::uint32_t finite_magnitude(float value) {
  const std::uint32_t bits = __float_as_uint(value) & 0x7fffffff;
  return bits < 0x7f800000 ? bits : 0;
}

/// The scale of a group: rules 1 and 2 of the contract of quantize_fp8, for the bits of the largest
/// magnitude.
__device__ __forceinline__ float fp8_scale_for(std::uint32_t largest, bool use_ue8m0) {
  const float scale = __fdiv_rn(fmaxf(__uint_as_float(largest), 1e-10F), 448.0F);
  // A normal number: a mantissa rounds up into the exponent.
  return use_ue8m0 ? __uint_as_float((__float_as_uint(scale) + 0x7fffff) & 0x7f800000) : scale;
}

/// A scale, as fp8_scale_for() returns it, that numbers are divided by.
struct Fp8Divisor {
  float scale;
  float reciprocal;
};
__device__ __forceinline__ Fp8Divisor fp8_divisor(float scale) { return {scale, __frcp_rn(scale)}; }

/// The nearest number to value / scale, or, where that is tiny, one that becomes the same value of
/// float8_e4m3fn. The reciprocal is the nearest number, so that one correction of the product is
/// enough (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor",
/// 1990).
__device__ __forceinline__ float quotient(float value, Fp8Divisor by) {
  const float product = value * by.reciprocal;
  const float remainder = __fmaf_rn(-product, by.scale, value);
  // A zero keeps its sign, and infinity has no remainder.
  return fabsf(remainder) > 0 ? __fmaf_rn(remainder, by.reciprocal, product) : product;
}

/// Four numbers in float16, two in each register.
struct Halves {
  std::uint32_t of[2];
};

/// The values of four bytes in float8_e4m3fn, exactly, in an order that is the same for all bytes.
__device__ __forceinline__ Halves halves_of(std::uint32_t bytes) {
#if __CUDA_ARCH__ >= 890
  Halves halves;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %2;"
      "cvt.rn.f16x2.e4m3x2 %0, low; cvt.rn.f16x2.e4m3x2 %1, high;}"
      : "=r"(halves.of[0]), "=r"(halves.of[1])
      : "r"(bytes));
  return halves;
#else
  // Exponents of float16 have a bias of 8 more. A NaN has all bits but the sign: the sum carries
  // into that, and the carry into the highest bit of the exponent, which nothing else sets.
  const std::uint32_t nans = (bytes & 0x7f7f7f7f) + 0x01010101;
  const std::uint32_t even =
      (bytes & 0x007f007f) << 7 | (bytes & 0x00800080) << 8 | (nans & 0x00800080) << 7;
  const std::uint32_t odd =
      (bytes & 0x7f007f00) >> 1 | (bytes & 0x80008000) | (nans & 0x80008000) >> 1;
  const auto scaled = [](std::uint32_t halves) {
    std::uint32_t result;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(halves), "r"(0x5c005c00));  // 256
    return result;
  };
  return {{scaled(even), scaled(odd)}};
#endif
}

}  // namespace tessera::cuda
