// The activations of fused_experts, and what else is done to single elements, for one instruction
// set. See fused_experts_products.hpp for how this is included.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/fused_experts_kernels.hpp"
#include "cpu/fused_experts_products.hpp"

namespace tessera::cpu {
namespace {

/// Element functions on vectors of floats. A NaN passes through each of them.
template <typename Isa>
struct Functions {
  using Floats = typename Isa::Floats;
  using Bits = typename Isa::Bits;

  static Floats all(float value) { return Floats{} + value; }
  static Floats at_most(Floats x, float limit) { return x > limit ? all(limit) : x; }
  static Floats at_least(Floats x, float limit) { return x < limit ? all(limit) : x; }

  /// exp(x) within 2 ulp, for x limited to the range in which it is a normal number.
  static Floats exp(Floats x) {
    x = at_least(at_most(x, 88.0F), -87.0F);
    // x = n ln(2) + r, |r| <= ln(2) / 2. Adding 1.5 * 2^23 rounds to an integer in the last bits.
    constexpr float kRound = 12582912.0F;
    const Floats shifted = Isa::multiply_add(x, all(1.44269504F), all(kRound));
    const Floats n = shifted - kRound;
    // ln(2) in two parts; the product with the first is exact.
    Floats r = Isa::multiply_add(n, all(-0.693359375F), x);
    r = Isa::multiply_add(n, all(2.12194440e-4F), r);
    // S. L. Moshier's polynomial (Cephes, expf).
    Floats p = all(1.9875691500e-4F);
    p = Isa::multiply_add(p, r, all(1.3981999507e-3F));
    p = Isa::multiply_add(p, r, all(8.3334519073e-3F));
    p = Isa::multiply_add(p, r, all(4.1665795894e-2F));
    p = Isa::multiply_add(p, r, all(1.6666665459e-1F));
    p = Isa::multiply_add(p, r, all(5.0000001201e-1F));
    p = Isa::multiply_add(p, r * r, r) + 1.0F;
    // 2^n: the last bits of `shifted` are n, or any bits of a NaN.
    const Bits exponent = (reinterpret_cast<Bits>(shifted) << 23) + (127U << 23);
    return p * reinterpret_cast<Floats>(exponent);
  }

  static Floats sigmoid(Floats x) { return 1.0F / (1.0F + exp(-x)); }

  /// (1 + erf(x / sqrt(2))) / 2 within 2^-22: M. Abramowitz and I. A. Stegun, Handbook of
  /// Mathematical Functions (1964), formula 7.1.26.
  static Floats normal_distribution(Floats x) {
    const Floats z = x * 0.70710678F;
    const Floats magnitude = z < 0.0F ? -z : z;
    const Floats t = 1.0F / Isa::multiply_add(magnitude, all(0.3275911F), all(1.0F));
    Floats p = all(1.061405429F);
    p = Isa::multiply_add(p, t, all(-1.453152027F));
    p = Isa::multiply_add(p, t, all(1.421413741F));
    p = Isa::multiply_add(p, t, all(-0.284496736F));
    p = Isa::multiply_add(p, t, all(0.254829592F));
    const Floats upper = 0.5F * p * t * exp(-z * z);
    return x < 0.0F ? upper : 1.0F - upper;
  }

  static Floats silu(Floats z) { return z * sigmoid(z); }
  static Floats gelu(Floats z) { return z * normal_distribution(z); }
  static Floats gelu_tanh(Floats z) {
    // (1 + tanh(y)) / 2 = sigmoid(2 y), with 2 sqrt(2 / pi) as the factor.
    return z * sigmoid(1.59576912F * (z + 0.044715F * z * z * z));
  }
  static Floats relu2(Floats z) { return z < 0.0F ? Floats{} : z * z; }
  static Floats swigluoai(Floats gate, Floats up, const ActivatedRow& row) {
    const Floats z = at_most(gate, row.limit);
    const Floats m = at_least(at_most(up, row.limit), -row.limit) + row.beta;
    return z * sigmoid(row.alpha * z) * m;
  }

  static Floats activate(Floats gate, Floats up, const ActivatedRow& row) {
    switch (row.activation) {
      case Activation::kSilu:
        return silu(gate) * up;
      case Activation::kGelu:
        return gelu(gate) * up;
      case Activation::kGeluTanh:
        return gelu_tanh(gate) * up;
      case Activation::kSwigluoai:
      case Activation::kSwigluoaiUninterleave:
        return swigluoai(gate, up, row);
      case Activation::kSiluNoMul:
        return silu(gate);
      case Activation::kGeluNoMul:
        return gelu(gate);
      case Activation::kGeluTanhNoMul:
        return gelu_tanh(gate);
      case Activation::kRelu2NoMul:
        return relu2(gate);
    }
    return gate;
  }
};

/// to[i] = from[i] for `size` elements, and zeros up to a full vector.
template <typename Isa, typename Element>
void widen_elements(const Element* from, std::int64_t size, float* to) {
  std::int64_t i = 0;
  for (; i + Isa::kLanes <= size; i += Isa::kLanes) Isa::store(to + i, Isa::widen(from + i));
  if (i == size) return;
  Element padded[Isa::kLanes] = {};
  copy(from + i, size - i, padded);
  Isa::store(to + i, Isa::widen(padded));
}

template <typename Isa, typename Element>
void round_elements(const float* from, std::int64_t size, Element* to) {
  std::int64_t i = 0;
  for (; i + Isa::kLanes <= size; i += Isa::kLanes) Isa::round(to + i, Isa::load(from + i));
  if (i == size) return;
  float padded[Isa::kLanes] = {};
  copy(from + i, size - i, padded);
  Element rounded[Isa::kLanes];
  Isa::round(rounded, Isa::load(padded));
  copy(rounded, size - i, to + i);
}

/// g = scale * g + bias
template <typename Isa, typename Element>
void scale_and_bias(float scale, const void* bias, std::int64_t size, float* g) {
  alignas(64) float wide[2 * kMaxActivated];
  if (bias != nullptr) widen_elements<Isa>(static_cast<const Element*>(bias), size, wide);
  for (std::int64_t i = 0; i < size; i += Isa::kLanes) {
    typename Isa::Floats value = Isa::load(g + i) * scale;
    if (bias != nullptr) value = value + Isa::load(wide + i);
    Isa::store(g + i, value);
  }
}

/// `Bias` is the data type of the biases.
template <typename Format, typename Bias>
void activate(const ActivatedRow& row) {
  using Isa = typename Format::Isa;
  const bool is_interleaved = row.activation == Activation::kSwigluoai;
  const bool has_up = is_interleaved || row.up != nullptr;
  scale_and_bias<Isa, Bias>(row.scale, row.gate_bias, is_interleaved ? 2 * row.size : row.size,
                            row.gate);
  const float* gate = row.gate;
  const float* up = row.up;
  alignas(64) float separate[2][kMaxActivated];
  if (is_interleaved) {
    for (std::int64_t i = 0; i < row.size; ++i) {
      separate[0][i] = row.gate[2 * i];
      separate[1][i] = row.gate[2 * i + 1];
    }
    for (std::int64_t i = row.size; i % Isa::kLanes != 0; ++i) separate[0][i] = separate[1][i] = 0;
    gate = separate[0];
    up = separate[1];
  } else if (has_up) {
    scale_and_bias<Isa, Bias>(row.scale, row.up_bias, row.size, row.up);
  }
  alignas(64) float values[kMaxActivated];
  for (std::int64_t i = 0; i < row.size; i += Isa::kLanes) {
    const typename Isa::Floats m = has_up ? Isa::load(up + i) : typename Isa::Floats{};
    Isa::store(values + i, Functions<Isa>::activate(Isa::load(gate + i), m, row));
  }
  typename Format::Element rounded[kMaxActivated];
  round_elements<Isa>(values, row.size, rounded);
  pack<Format>(rounded, row.first, row.size, row.layout, row.packed);
}

template <typename Isa, typename Element>
void add_scaled(const float* row, const void* bias, float scale, std::int64_t size, float* sums) {
  const auto factor = Functions<Isa>::all(scale);
  for (std::int64_t i = 0; i < size; i += Isa::kLanes) {
    typename Isa::Floats value = Isa::load(row + i);
    if (bias != nullptr) {
      alignas(64) float wide[Isa::kLanes];
      widen_elements<Isa>(static_cast<const Element*>(bias) + i, smaller(Isa::kLanes, size - i),
                          wide);
      value = value + Isa::load(wide);
    }
    Isa::store(sums + i, Isa::multiply_add(factor, value, Isa::load(sums + i)));
  }
}

template <typename Isa, typename Element>
void round_row(const float* sums, std::int64_t size, void* elements) {
  round_elements<Isa>(sums, size, static_cast<Element*>(elements));
}

template <typename Format>
constexpr ExpertKernels kernels_of() {
  using Isa = typename Format::Isa;
  using Element = typename Format::Element;
  return {sizeof(Element),
          sizeof(Element),
          sizeof(typename Format::Packed),
          Format::kStep,
          pack<Format>,
          nullptr,
          multiply<Format>,
          activate<Format, Element>,
          add_scaled<Isa, Element>,
          round_row<Isa, Element>};
}

/// With weights in float8_e4m3fn. Element is the data type of the rest.
template <typename Isa, typename Element>
constexpr ExpertKernels fp8_kernels_of() {
  return {sizeof(Element),
          sizeof(Float8E4m3),
          sizeof(float),
          Isa::kFp8Step,
          pack<Widened<Isa, Element>>,
          pack_fp8<Isa>,
          multiply<Fp8Weights<Isa>>,
          activate<Widened<Isa, float>, Element>,
          add_scaled<Isa, Element>,
          round_row<Isa, Element>};
}

}  // namespace
}  // namespace tessera::cpu
