// fused_experts as the contract writes it down: short enough to be seen correct.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "cpu/floating_point.hpp"
#include "cpu/fused_experts.hpp"
#include "cpu/fused_experts_fp8.hpp"
#include "cpu/fused_experts_inputs.hpp"
#include "cpu/quantize_fp8.hpp"
#include "cpu/workspace.hpp"

namespace tessera::cpu {
namespace {

using core::ExpertWeights;
using core::FusedExpertsProblem;
using core::WeightScales;

constexpr std::int64_t kFloatBytes = sizeof(float);

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

/// The sum of (row of the expert's weights) * vector.
template <typename T>
float sum_of(const ExpertWeights& weights, std::int64_t expert, std::int64_t row,
             const auto* vector, std::int64_t begin, std::int64_t end) {
  const T* const elements = static_cast<const T*>(weights.data) + expert * weights.expert_stride +
                            row * weights.row_stride;
  float sum = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    sum += to_float(elements[i * weights.column_stride]) * to_float(vector[i]);
  }
  return sum;
}

template <typename T>
float with_bias(float sum, const ExpertWeights& weights, std::int64_t expert, std::int64_t row) {
  if (weights.bias == nullptr) return sum;
  return sum + to_float(static_cast<const T*>(weights.bias)[expert * weights.bias_stride + row]);
}

/// Vectors in the data type of x.
template <typename T>
class Plain {
 public:
  Plain(const FusedExpertsProblem& p, Parts*) : p_(p) {}

  const T* hidden(std::int64_t token) const {
    return static_cast<const T*>(p_.x) + token * p_.x_stride;
  }

  const float* intermediate(float* activated) const {
    for (std::int64_t f = 0; f < p_.intermediate_size; ++f) {
      activated[f] = to_float(round_to<T>(activated[f]));
    }
    return activated;
  }

  float product(const ExpertWeights& weights, std::int64_t expert, std::int64_t row,
                const auto* vector, std::int64_t length) const {
    return sum_of<T>(weights, expert, row, vector, 0, length);
  }

 private:
  const FusedExpertsProblem& p_;
};

/// Vectors in float8_e4m3fn.
template <typename T>
class Fp8 {
 public:
  Fp8(const FusedExpertsProblem& p, Parts* parts)
      : p_(p),
        hidden_(p.hidden_size, p.w13.scales.kind, parts),
        intermediate_(p.intermediate_size, p.w13.scales.kind, parts) {}

  const Fp8Vector* hidden(std::int64_t token) {
    if (p_.is_x_fp8) {
      hidden_.view(static_cast<const Float8E4m3*>(p_.x) + token * p_.x_stride,
                   p_.x_scale + token * p_.x_scale_stride);
    } else {
      hidden_.quantize(static_cast<const T*>(p_.x) + token * p_.x_stride, dtype_of<T>(), p_.x_scale,
                       p_.use_ue8m0, quantize_fp8_reference);
    }
    return &hidden_;
  }

  const Fp8Vector* intermediate(const float* activated) {
    intermediate_.quantize(activated, dtype_of<float>(), p_.intermediate_scale, p_.use_ue8m0,
                           quantize_fp8_reference);
    return &intermediate_;
  }

  float product(const ExpertWeights& weights, std::int64_t expert, std::int64_t row,
                const Fp8Vector* vector, std::int64_t length) const {
    const float* const row_scales = weights.scales.of_row(expert, row);
    const std::int64_t group = vector->group();
    float sum = 0;
    for (std::int64_t begin = 0; begin < length; begin += group) {
      const std::int64_t end = std::min(begin + group, length);
      sum += row_scales[begin / group] * vector->scales()[begin / group] *
             sum_of<Float8E4m3>(weights, expert, row, vector->values(), begin, end);
    }
    return sum;
  }

 private:
  const FusedExpertsProblem& p_;
  Fp8Vector hidden_;
  Fp8Vector intermediate_;
};

template <typename T, template <typename> typename Vectors>
void run(const FusedExpertsProblem& p, std::byte* workspace) {
  Parts parts{workspace};
  auto* const gate_up = parts.take<float>(kFloatBytes * p.num_gate_up_rows());
  auto* const activated = parts.take<float>(kFloatBytes * p.intermediate_size);
  auto* const sums = parts.take<float>(kFloatBytes * p.hidden_size);
  Vectors<T> vectors(p, &parts);
  for (std::int64_t token = 0; token < p.num_tokens; ++token) {
    std::fill_n(sums, p.hidden_size, 0.0F);
    const auto* const x = vectors.hidden(token);
    for (std::int64_t slot = 0; slot < p.top_k; ++slot) {
      const std::int64_t expert = expert_of(p, token, slot);
      if (expert < 0) continue;
      const float weight = router_weight(p, token, slot);
      const float on_input = p.apply_router_weight_on_input ? weight : 1;
      const float on_output = p.apply_router_weight_on_input ? 1 : weight;
      for (std::int64_t row = 0; row < p.num_gate_up_rows(); ++row) {
        const float sum = on_input * vectors.product(p.w13, expert, row, x, p.hidden_size);
        gate_up[row] = with_bias<T>(sum, p.w13, expert, row);
      }
      for (std::int64_t f = 0; f < p.intermediate_size; ++f) {
        activated[f] = activate(p, gate_up, f);
      }
      const auto* const a = vectors.intermediate(activated);
      for (std::int64_t row = 0; row < p.hidden_size; ++row) {
        const float sum = vectors.product(p.w2, expert, row, a, p.intermediate_size);
        sums[row] += on_output * with_bias<T>(sum, p.w2, expert, row);
      }
    }
    T* const output = static_cast<T*>(p.output) + token * p.output_stride;
    for (std::int64_t h = 0; h < p.hidden_size; ++h) output[h] = round_to<T>(sums[h]);
  }
}

template <typename T>
void run_for(const FusedExpertsProblem& p, std::byte* workspace) {
  p.has_fp8_weights() ? run<T, Fp8>(p, workspace) : run<T, Plain>(p, workspace);
}

}  // namespace

Status fused_experts_reference(const FusedExpertsProblem& problem, const Context& context) {
  const DefaultFloatingPoint environment;
  auto* const workspace = Workspace::array_in<std::byte>(context.workspace);
  if (problem.dtype.code == kDLBfloat) {
    run_for<Bfloat16>(problem, workspace);
  } else if (problem.dtype.bits == 16) {
    run_for<Float16>(problem, workspace);
  } else {
    run_for<float>(problem, workspace);
  }
  return {};
}

std::size_t fused_experts_reference_workspace_bytes(const FusedExpertsProblem& problem,
                                                    const Context&) {
  const WeightScales kind = problem.w13.scales.kind;
  return Workspace::bytes_for<std::byte>(
      kFloatBytes * (problem.num_gate_up_rows() + problem.intermediate_size + problem.hidden_size) +
      Fp8Vector::bytes_for(problem.hidden_size, kind) +
      Fp8Vector::bytes_for(problem.intermediate_size, kind));
}

}  // namespace tessera::cpu
