// The activations of the contract, with its evaluation errors.
#pragma once

#include "cuda/fused_experts/kernels.hpp"

namespace tessera::cuda {

/// z / (1 + exp(-scaled)). A relative error of exp is damped by the 1 or grows with |scaled|, which
/// the contract allows for.
__device__ __forceinline__ float times_sigmoid(float z, float scaled) {
  constexpr float kLog2E = 1.4426950408889634F;
  float exponential;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(exponential) : "f"(-kLog2E * scaled));
  float sigmoid;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(1.0F + exponential));
  return z * sigmoid;
}

__device__ __forceinline__ float gelu(float z) {
  constexpr float kSqrtHalf = 0.70710678118654752F;
  return 0.5F * z * (1.0F + erff(z * kSqrtHalf));
}

__device__ __forceinline__ float gelu_tanh(float z) {
  constexpr float kSqrtTwoOverPi = 0.79788456080286536F;
  constexpr float kCubic = 0.044715F;
  return 0.5F * z * (1.0F + tanhf(kSqrtTwoOverPi * (z + kCubic * z * z * z)));
}

/// The minimum, or NaN if `value` is NaN.
__device__ __forceinline__ float at_most(float value, float limit) {
  return value > limit ? limit : value;
}

/// activation(gate, up), where `up` counts for gated activations alone.
template <Activation kActivation>
__device__ __forceinline__ float activated(const ProductArgs& args, float gate, float up) {
  if constexpr (kActivation == Activation::kSilu) {
    return times_sigmoid(gate, gate) * up;
  } else if constexpr (kActivation == Activation::kGelu) {
    return gelu(gate) * up;
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    return gelu_tanh(gate) * up;
  } else if constexpr (is_swigluoai(kActivation)) {
    const float z = at_most(gate, args.swiglu_limit);
    const float m = -at_most(-at_most(up, args.swiglu_limit), args.swiglu_limit);
    return times_sigmoid(z, args.swiglu_alpha * z) * (m + args.swiglu_beta);
  } else if constexpr (kActivation == Activation::kSiluNoMul) {
    return times_sigmoid(gate, gate);
  } else if constexpr (kActivation == Activation::kGeluNoMul) {
    return gelu(gate);
  } else if constexpr (kActivation == Activation::kGeluTanhNoMul) {
    return gelu_tanh(gate);
  } else {
    static_assert(kActivation == Activation::kRelu2NoMul);
    const float z = gate < 0 ? 0.0F : gate;
    return z * z;
  }
}

/// Calls visit.operator()<the activation of the call>(), and so keeps the choice out of its loops.
template <typename Visit>
__device__ __forceinline__ void with_activation(Activation activation, const Visit& visit) {
  switch (activation) {
    case Activation::kSilu:
      return visit.template operator()<Activation::kSilu>();
    case Activation::kGelu:
      return visit.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh:
      return visit.template operator()<Activation::kGeluTanh>();
    case Activation::kSwigluoai:
      return visit.template operator()<Activation::kSwigluoai>();
    case Activation::kSwigluoaiUninterleave:
      return visit.template operator()<Activation::kSwigluoaiUninterleave>();
    case Activation::kSiluNoMul:
      return visit.template operator()<Activation::kSiluNoMul>();
    case Activation::kGeluNoMul:
      return visit.template operator()<Activation::kGeluNoMul>();
    case Activation::kGeluTanhNoMul:
      return visit.template operator()<Activation::kGeluTanhNoMul>();
    default:
      return visit.template operator()<Activation::kRelu2NoMul>();
  }
}

}  // namespace tessera::cuda
