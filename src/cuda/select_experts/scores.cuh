// The scores of a token's experts, and the weights of its slots.
#pragma once

#include <cstdint>

#include "cuda/parts/warp.cuh"
#include "cuda/select_experts/experts.cuh"
#include "cuda/select_experts/functions.cuh"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {

/// What all scores of a token have in common. A score is a numerator, divided by the sum of all
/// numerators in a softmax, or where infinite logits share the weight.
template <Scoring kScoring>
class Scores {
 public:
  /// `largest`: of the token's logits.
  __device__ __forceinline__ void set_largest(float largest) {
    is_shared_ = largest == kInfinity;
    are_zero_ = largest == -kInfinity;
    largest_ = is_shared_ || are_zero_ ? 0 : largest;
  }

  __device__ __forceinline__ bool have_divisor() const {
    return kScoring == Scoring::kSoftmax || is_shared_;
  }

  __device__ __forceinline__ void set_divisor(float sum) { divisor_ = are_zero_ ? 1 : sum; }

  __device__ __forceinline__ float numerator_of(float logit) const {
    if constexpr (kScoring == Scoring::kSigmoid) return sigmoid(logit);
    const float shared = logit == kInfinity ? 1 : 0;
    const float own = kScoring == Scoring::kSoftmax ? exponential(__fsub_rn(logit, largest_))
                                                    : sqrt_softplus(logit);
    return is_shared_ ? shared : own;
  }

  __device__ __forceinline__ float score_of(float logit) const {
    const float numerator = numerator_of(logit);
    return kScoring == Scoring::kSigmoid ? numerator : __fdiv_rn(numerator, divisor_);
  }

 private:
  float largest_ = 0;
  float divisor_ = 1;
  bool is_shared_ = false;
  bool are_zero_ = false;
};

/// The sum of a warp, in the order of the contract.
__device__ __forceinline__ float sum_of_warp(float sum) {
#pragma unroll
  for (int half = kWarp / 2; half > 0; half /= 2) {
    sum = __fadd_rn(sum, __shfl_xor_sync(kAllLanes, sum, half));
  }
  return sum;
}

/// The order of the choice with a bias. `logit`: of the expert with this score.
__device__ __forceinline__ std::uint32_t key_with_bias(float score, float bias, float logit) {
  const float sum = __fadd_rn(score, bias);
  return key_of(logit != -kInfinity && !isnan(sum) ? sum : -kInfinity);
}

/// Turns the logits in the slots into scores, by one warp.
template <Scoring kScoring>
__device__ __forceinline__ void turn_into_scores(const SelectExpertsKernelArgs& args, Slot* slots,
                                                 const Scores<kScoring>& scores) {
#pragma unroll 1
  for (int i = lane(); i < args.top_k; i += kWarp) {
    slots[i].value = scores.score_of(slots[i].value);
  }
  __syncwarp();
}

/// Writes a token's outputs, by one warp. The slots hold scores, and zeros after the last one, as
/// far as they are added up at once.
__device__ __forceinline__ void write_slots(const SelectExpertsKernelArgs& args, std::int64_t token,
                                            const Slot* slots) {
  constexpr int kAtOnce = kSelectExpertsSlotsAtOnce;
  Slot own = slots[lane()];  // on its way while the others are added up
  float sum = 0;
  if (args.renormalize) {
#pragma unroll 1
    for (int first = 0; first < args.top_k; first += kAtOnce) {
      const auto* const twos = reinterpret_cast<const float4*>(slots + first);
      float4 loaded[kAtOnce / 2];
#pragma unroll
      for (int i = 0; i < kAtOnce / 2; ++i) loaded[i] = twos[i];
#pragma unroll
      for (const float4& two : loaded) sum = __fadd_rn(__fadd_rn(sum, two.y), two.w);
    }
  }
  const float divisor = sum != 0 ? sum : 1;
#pragma unroll 1
  for (int i = lane(); i < args.top_k; i += kWarp) {
    if (i >= kWarp) own = slots[i];
    const std::int64_t to = token * args.top_k + i;
    args.topk_weights[to] = __fmul_rn(__fdiv_rn(own.value, divisor), args.routed_scaling_factor);
    args.topk_ids[to] = own.expert;
  }
}

/// Writes the outputs of a token that does not count.
__device__ __forceinline__ void write_padding(const SelectExpertsKernelArgs& args,
                                              std::int64_t token) {
#pragma unroll 1
  for (int slot = lane(); slot < args.top_k; slot += kWarp) {
    args.topk_weights[token * args.top_k + slot] = 0;
    args.topk_ids[token * args.top_k + slot] = -1;
  }
}

}  // namespace tessera::cuda
