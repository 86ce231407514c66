// fused_experts as the contract writes it down: short enough to be seen correct.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "cpu/floating_point.hpp"
#include "cpu/fused_experts.hpp"
#include "cpu/fused_experts_inputs.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::ExpertWeights;
using core::FusedExpertsProblem;

float sigmoid(float z) { return 1 / (1 + std::exp(-z)); }

/// activation(g)[f] of F elements.
float activate(const FusedExpertsProblem& p, const float* g, std::int64_t f) {
  constexpr float kSqrtHalf = std::numbers::sqrt2_v<float> / 2;
  const auto silu = [](float z) { return z * sigmoid(z); };
  const auto gelu = [](float z) { return z / 2 * (1 + std::erf(z * kSqrtHalf)); };
  const auto gelu_tanh = [](float z) {
    const float scale = std::sqrt(2 * std::numbers::inv_pi_v<float>);
    return z / 2 * (1 + std::tanh(scale * (z + 0.044715F * z * z * z)));
  };
  const auto swigluoai = [&p](float gate, float up) {
    // Unlike std::min and std::clamp, these comparisons let a NaN through.
    const float z = gate > p.swiglu_limit ? p.swiglu_limit : gate;
    const float m = up > p.swiglu_limit    ? p.swiglu_limit
                    : up < -p.swiglu_limit ? -p.swiglu_limit
                                           : up;
    return z * sigmoid(p.swiglu_alpha * z) * (m + p.swiglu_beta);
  };
  const std::int64_t size = p.intermediate_size;
  switch (p.activation) {
    case Activation::kSilu:
      return silu(g[f]) * g[size + f];
    case Activation::kGelu:
      return gelu(g[f]) * g[size + f];
    case Activation::kGeluTanh:
      return gelu_tanh(g[f]) * g[size + f];
    case Activation::kSwigluoai:
      return swigluoai(g[2 * f], g[2 * f + 1]);
    case Activation::kSwigluoaiUninterleave:
      return swigluoai(g[f], g[size + f]);
    case Activation::kSiluNoMul:
      return silu(g[f]);
    case Activation::kGeluNoMul:
      return gelu(g[f]);
    case Activation::kGeluTanhNoMul:
      return gelu_tanh(g[f]);
    case Activation::kRelu2NoMul:
      return g[f] < 0 ? 0 : g[f] * g[f];
  }
  return 0;
}

/// scale * (row of the expert's weights) * vector + bias.
template <typename T>
float product(const ExpertWeights& weights, std::int64_t expert, std::int64_t row,
              const auto* vector, std::int64_t length, float scale) {
  const T* const elements = static_cast<const T*>(weights.data) + expert * weights.expert_stride +
                            row * weights.row_stride;
  float sum = 0;
  for (std::int64_t i = 0; i < length; ++i) {
    sum += to_float(elements[i * weights.column_stride]) * to_float(vector[i]);
  }
  sum *= scale;
  if (weights.bias == nullptr) return sum;
  return sum + to_float(static_cast<const T*>(weights.bias)[expert * weights.bias_stride + row]);
}

template <typename T>
void run(const FusedExpertsProblem& p, float* workspace) {
  float* const gate_up = workspace;
  float* const activated = gate_up + p.num_gate_up_rows();
  float* const sums = activated + p.intermediate_size;
  for (std::int64_t token = 0; token < p.num_tokens; ++token) {
    const T* const x = static_cast<const T*>(p.x) + token * p.x_stride;
    std::fill_n(sums, p.hidden_size, 0.0F);
    for (std::int64_t slot = 0; slot < p.top_k; ++slot) {
      const std::int64_t expert = expert_of(p, token, slot);
      if (expert < 0) continue;
      const float weight = router_weight(p, token, slot);
      const float on_input = p.apply_router_weight_on_input ? weight : 1;
      const float on_output = p.apply_router_weight_on_input ? 1 : weight;
      for (std::int64_t row = 0; row < p.num_gate_up_rows(); ++row) {
        gate_up[row] = product<T>(p.w13, expert, row, x, p.hidden_size, on_input);
      }
      for (std::int64_t f = 0; f < p.intermediate_size; ++f) {
        activated[f] = to_float(round_to<T>(activate(p, gate_up, f)));
      }
      for (std::int64_t row = 0; row < p.hidden_size; ++row) {
        sums[row] += on_output * product<T>(p.w2, expert, row, activated, p.intermediate_size, 1);
      }
    }
    T* const output = static_cast<T*>(p.output) + token * p.output_stride;
    for (std::int64_t h = 0; h < p.hidden_size; ++h) output[h] = round_to<T>(sums[h]);
  }
}

}  // namespace

Status fused_experts_reference(const FusedExpertsProblem& problem, const Context& context) {
  const DefaultFloatingPoint environment;
  auto* const workspace = Workspace::array_in<float>(context.workspace);
  if (problem.dtype.code == kDLBfloat) {
    run<Bfloat16>(problem, workspace);
  } else if (problem.dtype.bits == 16) {
    run<Float16>(problem, workspace);
  } else {
    run<float>(problem, workspace);
  }
  return {};
}

std::size_t fused_experts_reference_workspace_bytes(const FusedExpertsProblem& problem,
                                                    const Context&) {
  return Workspace::bytes_for<float>(problem.num_gate_up_rows() + problem.intermediate_size +
                                     problem.hidden_size);
}

}  // namespace tessera::cpu
