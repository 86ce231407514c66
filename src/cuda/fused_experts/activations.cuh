// The activations of the contract, with its evaluation errors.
#pragma once

#include "cuda/fused_experts/kernels.hpp"

namespace tessera::cuda {

/// z / (1 + exp(-scaled)). A relative error of exp is damped by the 1 or grows with |scaled|, which
/// the contract allows for.
__device__ __forceinline__ float times_sigmoid(float z, float scaled) {
  return __fdividef(z, 1.0F + __expf(-scaled));
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
__device__ __forceinline__ float activated(const ProductArgs& args, float gate, float up) {
  switch (args.activation) {
    case Activation::kSilu:
      return times_sigmoid(gate, gate) * up;
    case Activation::kGelu:
      return gelu(gate) * up;
    case Activation::kGeluTanh:
      return gelu_tanh(gate) * up;
    case Activation::kSwigluoai:
    case Activation::kSwigluoaiUninterleave: {
      const float z = at_most(gate, args.swiglu_limit);
      const float m = -at_most(-at_most(up, args.swiglu_limit), args.swiglu_limit);
      return times_sigmoid(z, args.swiglu_alpha * z) * (m + args.swiglu_beta);
    }
    case Activation::kSiluNoMul:
      return times_sigmoid(gate, gate);
    case Activation::kGeluNoMul:
      return gelu(gate);
    case Activation::kGeluTanhNoMul:
      return gelu_tanh(gate);
    default: {  // kRelu2NoMul
      const float z = gate < 0 ? 0.0F : gate;
      return z * z;
    }
  }
}

}  // namespace tessera::cuda
