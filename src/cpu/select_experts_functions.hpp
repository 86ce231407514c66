// The elementary functions of select_experts as its contract states them, for a float or a vector
// of floats. Their callers are compiled without contraction of products and sums: every rounding
// below is the contract's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace tessera::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Accumulators of the sum of a softmax: one for each remainder of e by their number.
constexpr int kSums = 32;

/// Adds them up in pairs, and leaves the total in the first.
inline float sum_in_pairs(float (&sums)[kSums]) {
  for (int half = kSums / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

/// Isa has types of floats and of as many int32, and multiply_add and square_root.
template <typename Isa>
struct RouterFunctions {
  using Floats = typename Isa::Floats;
  using Ints = typename Isa::Ints;

  static Floats all(float value) { return Floats{} + value; }

  /// Evaluates a polynomial by Horner's rule, from the highest power down.
  template <std::size_t kSize>
  static Floats polynomial(const float (&coefficients)[kSize], Floats x) {
    Floats sum = all(coefficients[0]);
    for (std::size_t i = 1; i < kSize; ++i) {
      sum = Isa::multiply_add(sum, x, all(coefficients[i]));
    }
    return sum;
  }

  static Floats power_of_two(Ints exponent) {
    return std::bit_cast<Floats>((exponent + 127) << 23);
  }

  /// For x <= 0, which may be -inf.
  static Floats exponential(Floats x) {
    const Floats within = x < -104.0F ? all(-104) : x;
    // Adding 1.5 * 2^23 rounds to an integer, which is then in the last bits.
    constexpr float kRound = 0x1.8p23F;
    const Floats shifted = within * 0x1.715476p+0F + kRound;
    const Floats n = shifted - kRound;
    const Floats r = Isa::multiply_add(n, all(0x1.05c610p-29F),
                                       Isa::multiply_add(n, all(-0x1.62e430p-1F), within));
    constexpr float kTaylor[] = {1.0F / 5040, 1.0F / 720, 1.0F / 120, 1.0F / 24,
                                 1.0F / 6,    1.0F / 2,   1.0F,       1.0F};
    const Ints exponent = std::bit_cast<Ints>(shifted) - std::bit_cast<std::int32_t>(kRound);
    const Ints half = (exponent + 1) >> 1;  // rounds negative numbers towards 0
    const Floats value =
        polynomial(kTaylor, r) * power_of_two(half) * power_of_two(exponent - half);
    return x < -104.0F ? all(0) : value;
  }

  /// For 0 <= y <= 1.
  static Floats log1p(Floats y) {
    const Floats s = y / (2.0F + y);
    const Floats q = s * s;
    constexpr float kSeries[] = {2.0F / 17, 2.0F / 15, 2.0F / 13, 2.0F / 11,
                                 2.0F / 9,  2.0F / 7,  2.0F / 5,  2.0F / 3};
    return Isa::multiply_add(polynomial(kSeries, q) * q, s, 2.0F * s);
  }

  static Floats minus_magnitude(Floats v) { return v < 0.0F ? v : -v; }

  static Floats sigmoid(Floats v) {
    const Floats x = exponential(minus_magnitude(v));
    return (v < 0.0F ? x : all(1)) / (1.0F + x);
  }

  static Floats sqrt_softplus(Floats v) {
    const Floats softplus = (v > 0.0F ? v : all(0)) + log1p(exponential(minus_magnitude(v)));
    const Floats of_small = exponential((v < -16.0F ? v : all(-16)) * 0.5F);
    return v < -16.0F ? of_small : Isa::square_root(softplus);
  }
};

/// One float, for what follows the contract literally.
struct OneFloat {
  using Floats = float;
  using Ints = std::int32_t;
  static float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
  static float square_root(float x) { return std::sqrt(x); }
};

}  // namespace
}  // namespace tessera::cpu
