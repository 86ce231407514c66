// The elementary functions of select_experts as its contract states them. Intrinsics keep the
// compiler from joining products and sums, which would round once.
#pragma once

#include <cstdint>

namespace tessera::cuda {

/// Evaluates a polynomial by Horner's rule, from the highest power down.
template <int kSize>
__device__ __forceinline__ float polynomial(const float (&coefficients)[kSize], float x) {
  float sum = coefficients[0];
#pragma unroll
  for (int i = 1; i < kSize; ++i) sum = __fmaf_rn(sum, x, coefficients[i]);
  return sum;
}

__device__ __forceinline__ float power_of_two(std::int32_t exponent) {
  return __int_as_float((exponent << 23) + (127 << 23));
}

/// For x <= 0, which may be -inf.
__device__ __forceinline__ float exponential(float x) {
  constexpr float kLeast = -104;       // whose exponential rounds to 0, as those of smaller numbers
  constexpr float kRound = 0x1.8p23F;  // rounds a number of less than 2^22 that is added to it
  constexpr float kTaylor[] = {1.0F / 5040, 1.0F / 720, 1.0F / 120, 1.0F / 24,
                               1.0F / 6,    1.0F / 2,   1.0F,       1.0F};
  const float within = fmaxf(x, kLeast);
  const float shifted = __fadd_rn(__fmul_rn(within, 0x1.715476p+0F), kRound);
  const float n = __fsub_rn(shifted, kRound);
  const float r = __fmaf_rn(n, 0x1.05c610p-29F, __fmaf_rn(n, -0x1.62e430p-1F, within));
  const std::int32_t exponent = __float_as_int(shifted) - __float_as_int(kRound);
  const std::int32_t half = (exponent + 1) >> 1;  // rounded towards 0, as it is not positive
  return __fmul_rn(__fmul_rn(polynomial(kTaylor, r), power_of_two(half)),
                   power_of_two(exponent - half));
}

/// For 0 <= y <= 1.
__device__ __forceinline__ float log1p_of(float y) {
  constexpr float kSeries[] = {2.0F / 17, 2.0F / 15, 2.0F / 13, 2.0F / 11,
                               2.0F / 9,  2.0F / 7,  2.0F / 5,  2.0F / 3};
  const float s = __fdiv_rn(y, __fadd_rn(2, y));
  const float q = __fmul_rn(s, s);
  return __fmaf_rn(__fmul_rn(polynomial(kSeries, q), q), s, __fmul_rn(2, s));
}

/// n / d for 0 <= n <= 1 <= d <= 2, where d = 1 if n < 2^-25. These are the steps of __fdiv_rn
/// without its check for quotients that they do not round correctly, of which there are none here.
__device__ __forceinline__ float divide_by_one_to_two(float n, float d) {
  float estimate;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(estimate) : "f"(d));
  const float reciprocal = __fmaf_rn(estimate, __fmaf_rn(-d, estimate, 1), estimate);
  const float quotient = __fmul_rn(n, reciprocal);
  return __fmaf_rn(reciprocal, __fmaf_rn(-d, quotient, n), quotient);
}

__device__ __forceinline__ float sigmoid(float v) {
  const float x = exponential(-fabsf(v));
  return divide_by_one_to_two(v < 0 ? x : 1, __fadd_rn(1, x));
}

__device__ __forceinline__ float sqrt_softplus(float v) {
  const float of_small = exponential(__fmul_rn(fminf(v, -16), 0.5F));
  const float softplus = __fadd_rn(v > 0 ? v : 0, log1p_of(exponential(-fabsf(v))));
  return v < -16 ? of_small : __fsqrt_rn(softplus);
}

/// Orders unsigned integers as the numbers are; equal numbers, such as -0 and +0, have the same
/// key. No number has the key 0.
__device__ __forceinline__ std::uint32_t key_of(float number) {
  const std::int32_t bits = __float_as_int(__fadd_rn(number, 0));
  return static_cast<std::uint32_t>(bits ^ ((bits >> 31) | INT32_MIN));
}

__device__ __forceinline__ float number_of(std::uint32_t key) {
  const auto bits = static_cast<std::int32_t>(key);
  return __int_as_float(bits ^ (~(bits >> 31) | INT32_MIN));
}

}  // namespace tessera::cuda
