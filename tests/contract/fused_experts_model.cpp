#include "fused_experts_model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <numbers>

#include "float8_values.hpp"
#include "float_bits.hpp"

namespace tessera::contract {
namespace {

std::int64_t id_at(const TensorView& ids, std::int64_t token, std::int64_t slot) {
  const std::int64_t index = token * ids.strides[0] + slot;
  if (ids.dtype.bits == 64) return static_cast<const std::int64_t*>(ids.data)[index];
  return static_cast<const std::int32_t*>(ids.data)[index];
}

float given_or(float value, float otherwise) { return std::isnan(value) ? otherwise : value; }

}  // namespace

float FusedExpertsModel::Floats::at(std::int64_t i, std::int64_t j, std::int64_t k) const {
  const std::int64_t index = i * view.strides[0] + j * view.strides[1] + k * view.strides[2];
  return memory[static_cast<std::size_t>(index)];
}

FusedExpertsModel::Floats FusedExpertsModel::floats_of(const TensorView& view) {
  Floats floats{view, {}};
  if (!view.given() || view.num_elements == 0) return floats;
  std::int64_t last = 0;
  for (int i = 0; i < view.ndim; ++i) last += (view.shape[i] - 1) * view.strides[i];
  for (std::int64_t i = 0; i <= last; ++i) {
    std::uint32_t bits = 0;
    const std::size_t width = view.dtype.bits / 8U;
    std::memcpy(&bits,
                static_cast<const std::byte*>(view.data) + static_cast<std::size_t>(i) * width,
                width);
    floats.memory.push_back(static_cast<float>(width == 1 ? fp8_value_of(static_cast<int>(bits))
                                                          : value_of(format_of(view.dtype), bits)));
  }
  return floats;
}

FusedExpertsModel::FusedExpertsModel(const FusedExpertsCase& c, std::uint64_t seed)
    : made_(make_arguments(c, seed)),
      args_(made_.as<FusedExpertsArgs>()),
      x_(floats_of(args_.x)),
      w13_(floats_of(args_.w13)),
      w2_(floats_of(args_.w2)),
      w13_bias_(floats_of(args_.w13_bias)),
      w2_bias_(floats_of(args_.w2_bias)),
      topk_weights_(floats_of(args_.topk_weights)),
      fp8_(args_) {
  const std::int64_t stride = args_.x.shape[1] + c.gap;
  output_.resize(static_cast<std::size_t>(c.num_tokens * stride * (c.format.bits / 8)));
  args_.output.data = output_.data();
}

void FusedExpertsModel::run(Order order, Rows rows, Fault fault, Fp8Fault fp8_fault) {
  fp8_.set(static_cast<Fp8Order>(order), fp8_fault);
  order_ = order;
  rows_ = rows;
  fault_ = fault;
  const auto read_wrongly = [&](Floats* floats) {
    std::int64_t* const strides = floats->view.strides;
    const std::int64_t* const shape = floats->view.shape;
    if (fault == Fault::kTransposedAsRows && strides[2] > 1) {
      strides[1] = shape[2];
      strides[2] = 1;
    } else if (fault == Fault::kIgnoresGap) {
      strides[0] = shape[1] * shape[2];
      strides[1] = shape[2];
    }
  };
  w13_.view = args_.w13;
  w2_.view = args_.w2;
  read_wrongly(&w13_);
  read_wrongly(&w2_);
  for (std::int64_t t = 0; t < args_.x.shape[0]; ++t) run_token(t);
}

template <typename Term>
float FusedExpertsModel::sum(std::int64_t length, const Term& term) const {
  float total = 0;
  if (order_ == Order::kForward) {
    for (std::int64_t i = 0; i < length; ++i) {
      const auto [a, b] = term(i);
      total += a * b;
    }
  } else if (order_ == Order::kBackward) {
    for (std::int64_t i = length - 1; i >= 0; --i) {
      const auto [a, b] = term(i);
      total = a * b + total;
    }
  } else {
    std::array<float, 8> parts{};
    for (std::int64_t i = 0; i < length; ++i) {
      const auto [a, b] = term(i);
      float& part = parts[static_cast<std::size_t>(i * 8 / length)];
      part = std::fma(a, b, part);
    }
    for (const float part : parts) total += part;
  }
  return total;
}

FloatFormat FusedExpertsModel::format() const { return format_of(args_.output.dtype); }

float FusedExpertsModel::round(double value) const {
  return static_cast<float>(rounded(format(), value));
}

std::int64_t FusedExpertsModel::expert_of(std::int64_t token, std::int64_t slot) const {
  std::int64_t id = id_at(args_.topk_ids, token, slot);
  const std::int64_t experts = args_.w13.shape[0];
  if (fault_ == Fault::kIdOf32Bits) id = static_cast<std::int32_t>(id);
  if (fault_ == Fault::kIdBelowZeroIsZero) id = std::max<std::int64_t>(id, 0);
  if (fault_ == Fault::kIdBeyondIsLast) id = std::min(id, experts - 1);
  if (args_.expert_map.given() && fault_ != Fault::kIgnoresExpertMap) {
    if (id < 0 || id >= args_.expert_map.num_elements) return -1;
    id = static_cast<const std::int32_t*>(args_.expert_map.data)[id];
  }
  return id >= 0 && id < experts ? id : -1;
}

float FusedExpertsModel::phi(float z) const {
  const auto erf = [](float v) {
    return v / 2 * (1 + std::erf(v * std::numbers::sqrt2_v<float> / 2));
  };
  const auto tanh = [](float v) {
    return v / 2 *
           (1 +
            std::tanh(std::sqrt(2 * std::numbers::inv_pi_v<float>) * (v + 0.044715F * v * v * v)));
  };
  const bool exchanged = fault_ == Fault::kErfForTanh;
  switch (args_.activation) {
    case Activation::kGelu:
    case Activation::kGeluNoMul:
      return exchanged ? tanh(z) : erf(z);
    case Activation::kGeluTanh:
    case Activation::kGeluTanhNoMul:
      return exchanged ? erf(z) : tanh(z);
    case Activation::kRelu2NoMul:
      if (fault_ == Fault::kHidesNan) return z > 0 ? z * z : 0;
      if (fault_ == Fault::kReluNotSquared) return z < 0 ? 0 : z;
      return z < 0 ? 0 : z * z;
    default: {
      float alpha =
          is_swigluoai(args_.activation) ? given_or(args_.swiglu_alpha, kDefaultSwigluAlpha) : 1;
      if (fault_ == Fault::kAlphaOne) alpha = 1;
      return z / (1 + std::exp(-alpha * z));
    }
  }
}

float FusedExpertsModel::activate(float gate, float up) const {
  if (is_swigluoai(args_.activation)) {
    const float limit = given_or(args_.swiglu_limit, kDefaultSwigluLimit);
    float beta = given_or(args_.swiglu_beta, kDefaultSwigluBeta);
    if (fault_ == Fault::kForgetsBeta) beta = 0;
    if (fault_ == Fault::kDefaultBeta) beta = kDefaultSwigluBeta;
    if (fault_ != Fault::kIgnoresLimit) {
      if (gate > limit) gate = limit;
      if (gate < -limit && fault_ == Fault::kLimitsGateBelow) gate = -limit;
      if (up > limit) up = limit;
      if (up < -limit && fault_ != Fault::kIgnoresLimitBelow) up = -limit;
    }
    up += beta;
  }
  float factor = phi(gate);
  if (fault_ == Fault::kRoundsGateOnly) factor = round(factor);
  return has_gate(args_.activation) ? factor * up : factor;
}

float FusedExpertsModel::gate_up(std::int64_t token, std::int64_t expert, std::int64_t row,
                                 float weight) const {
  const bool on_input =
      args_.apply_router_weight_on_input && fault_ != Fault::kWeighsOutputInsteadOfInput;
  const float before = on_input && order_ == Order::kBackward ? weight : 1;
  const float after = on_input && order_ != Order::kBackward ? weight : 1;
  std::int64_t hidden = args_.x.shape[1];
  if (fault_ == Fault::kIgnoresHiddenTail) hidden = hidden / 16 * 16;
  const bool has_bias = args_.w13_bias.given() && fault_ != Fault::kBiasAfterActivation;
  const float bias = has_bias ? w13_bias_.at(expert, row, 0) : 0;
  if (has_scales()) {
    std::vector<float> x;
    for (std::int64_t h = 0; h < hidden; ++h) x.push_back(x_.at(token, h, 0));
    Fp8Elements elements = fp8_.hidden(token, x);
    for (float& scale : elements.scales) scale *= before;
    const auto weight_at = [&](std::int64_t h) { return w13_.at(expert, row, h); };
    // Where the weight comes after the product, so does the bias.
    if (after == 1) return fp8_.product(true, expert, row, elements, bias, weight_at);
    return after * fp8_.product(true, expert, row, elements, 0, weight_at) + bias;
  }
  const float value = after * sum(hidden,
                                  [&](std::int64_t h) {
                                    const bool skipped =
                                        fault_ == Fault::kSkipsHiddenStep && h / 16 == 1;
                                    return std::array{skipped ? 0 : w13_.at(expert, row, h),
                                                      before * x_.at(token, h, 0)};
                                  }) +
                      bias;
  return fault_ == Fault::kRoundsGateAndUp ? round(value) : value;
}

std::vector<float> FusedExpertsModel::intermediate(std::int64_t token, std::int64_t expert,
                                                   float weight) const {
  const auto g = [&](std::int64_t row) { return gate_up(token, expert, row, weight); };
  const std::int64_t size = args_.w2.shape[2];
  std::vector<float> activated;
  for (std::int64_t f = 0; f < size; ++f) {
    const bool interleaved =
        args_.activation == Activation::kSwigluoai && fault_ != Fault::kReadsGateAndUpAsHalves;
    std::int64_t gate_row = interleaved ? 2 * f : f;
    std::int64_t up_row = interleaved ? 2 * f + 1 : size + f;
    if (fault_ == Fault::kExchangesGateAndUp) std::swap(gate_row, up_row);
    float a = has_gate(args_.activation) ? activate(g(gate_row), g(up_row)) : activate(g(f), 0);
    if (fault_ == Fault::kBiasAfterActivation) a += w13_bias_.at(expert, gate_row, 0);
    if (fault_ == Fault::kRoundsTwice) {
      FloatFormat finer = format();
      finer.precision += 2;
      a = static_cast<float>(rounded(finer, a));
    }
    const bool is_kept = has_scales() || fault_ == Fault::kDoesNotRoundIntermediate;
    activated.push_back(is_kept ? a : round(a));
  }
  return activated;
}

float FusedExpertsModel::down(std::int64_t expert, std::int64_t row,
                              const std::vector<float>& activated) const {
  const float bias = args_.w2_bias.given() ? w2_bias_.at(expert, row, 0) : 0;
  if (has_scales()) {
    return fp8_.product(false, expert, row, fp8_.intermediate(activated), bias,
                        [&](std::int64_t f) { return w2_.at(expert, row, f); });
  }
  std::int64_t size = args_.w2.shape[2];
  if (fault_ == Fault::kIgnoresIntermediateTail) size = size / 16 * 16;
  const float y = sum(size, [&](std::int64_t f) {
    const bool skipped = fault_ == Fault::kSkipsIntermediateStep && f / 16 == 1;
    return std::array{skipped ? 0 : w2_.at(expert, row, f), activated[static_cast<std::size_t>(f)]};
  });
  return fault_ == Fault::kBiasNotWeighted ? y : y + bias;
}

void FusedExpertsModel::run_token(std::int64_t token) {
  const std::int64_t top_k = args_.topk_ids.shape[1];
  const std::int64_t hidden = args_.x.shape[1];
  std::vector<float> sums(static_cast<std::size_t>(hidden));
  bool counts = false;
  for (std::int64_t s = 0; s < top_k; ++s) {
    if (fault_ == Fault::kDropsLastSlot && s == top_k - 1) continue;
    const std::int64_t expert = expert_of(token, s);
    const float weight = topk_weights_.at(token, s, 0);
    if (expert < 0) {
      if (fault_ != Fault::kNanOfUncountedPair) continue;
      for (float& sum : sums) sum += 0 * weight;
      continue;
    }
    counts = true;
    const std::vector<float> a = intermediate(token, expert, weight);
    const bool on_output =
        !args_.apply_router_weight_on_input || fault_ == Fault::kWeighsOutputInsteadOfInput;
    float c = on_output || fault_ == Fault::kWeighsTwice ? weight : 1;
    if (on_output && fault_ == Fault::kWeighsTwice) c *= weight;
    for (std::int64_t h = 0; h < hidden; ++h) {
      float y = down(expert, h, a);
      if (fault_ == Fault::kRoundsY) y = round(y);
      y *= c;
      if (fault_ == Fault::kBiasNotWeighted) y += w2_bias_.at(expert, h, 0);
      float& sum = sums[static_cast<std::size_t>(h)];
      sum += rows_ == Rows::kRounded ? round(y) : y;
      if (fault_ == Fault::kRoundsSum) sum = round(sum);
    }
  }
  if (fault_ == Fault::kNanOfUnusedExpert) {
    for (std::int64_t e = 0; e < args_.w13.shape[0]; ++e) {
      for (float& sum : sums) sum += 0 * w13_.at(e, 0, 0);
    }
  }
  const FloatFormat format = this->format();
  for (std::int64_t h = 0; h < hidden; ++h) {
    const float sum = sums[static_cast<std::size_t>(h)];
    std::uint32_t bits = bits_of(format, rounded(format, sum));
    if (!counts && fault_ == Fault::kMinusZero) bits |= format.sign_bit();
    const auto width = static_cast<std::size_t>(format.bits / 8);
    const std::int64_t at = token * args_.output.strides[0] + h;
    std::memcpy(output_.data() + static_cast<std::size_t>(at) * width, &bits, width);
  }
}

}  // namespace tessera::contract
