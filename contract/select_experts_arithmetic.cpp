#include "select_experts_arithmetic.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <numeric>

#include "arrays.hpp"
#include "float_bits.hpp"

namespace tessera::contract {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

/// Integers below 2^24, so that each is exact.
float factorial(int n) { return n == 0 ? 1.0F : static_cast<float>(n) * factorial(n - 1); }

float or_least(float sum) { return std::isnan(sum) ? -kInf : sum; }

/// Step by step, in the order of the contract.
class Model {
 public:
  explicit Model(const TokenToSelect& token)
      : token_(token), m_(*std::max_element(token.v.begin(), token.v.end())) {}

  SelectedExperts run() {
    make_scores();
    make_choices();
    SelectedExperts selected;
    selected.ids = best_experts(experts_of_best_groups());
    selected.weights = weights_of(selected.ids);
    return selected;
  }

 private:
  void make_scores() {
    const std::span<const float> v = token_.v;
    scores_.assign(v.size(), 0);
    if (m_ == -kInf) return;
    const Scoring scoring = token_.args->scoring;
    if (scoring == Scoring::kSigmoid) {
      std::transform(v.begin(), v.end(), scores_.begin(), sigmoid);
    } else if (m_ == kInf) {
      const auto n = static_cast<float>(std::count(v.begin(), v.end(), kInf));
      for (std::size_t e = 0; e < v.size(); ++e) {
        if (v[e] == kInf) scores_[e] = 1 / n;
      }
    } else if (scoring == Scoring::kSqrtSoftplus) {
      std::transform(v.begin(), v.end(), scores_.begin(), sqrt_softplus);
    } else {
      make_softmax();
    }
  }

  void make_softmax() {
    std::array<float, 32> sums{};
    for (std::size_t e = 0; e < scores_.size(); ++e) {
      scores_[e] = contract_exponential(token_.v[e] - m_);
      sums[e % 32] = sums[e % 32] + scores_[e];
    }
    for (const std::size_t apart : {16U, 8U, 4U, 2U, 1U}) {
      for (std::size_t i = 0; i < apart; ++i) sums[i] = sums[i] + sums[i + apart];
    }
    for (float& score : scores_) score = score / sums[0];
  }

  static float sigmoid(float v) {
    const float x = contract_exponential(-std::abs(v));
    return v < 0 ? x / (1 + x) : 1 / (1 + x);
  }

  static float sqrt_softplus(float v) {
    return v < -16 ? contract_exponential(v / 2) : std::sqrt(contract_softplus(v));
  }

  void make_choices() {
    choices_.assign(token_.v.begin(), token_.v.end());
    if (!token_.has_bias()) return;
    for (std::size_t e = 0; e < choices_.size(); ++e) {
      if (choices_[e] != -kInf) choices_[e] = or_least(scores_[e] + token_.bias[e]);
    }
  }

  float group_score(std::int64_t group) const {
    const auto begin = choices_.begin() + group * token_.group_size();
    const auto end = begin + token_.group_size();
    if (!token_.has_bias() || token_.group_size() == 1) return *std::max_element(begin, end);
    std::vector<float> best(begin, end);
    std::nth_element(best.begin(), best.begin() + 1, best.end(), std::greater<>());
    return or_least(best[0] + best[1]);
  }

  std::vector<std::int32_t> experts_of_best_groups() const {
    std::vector<float> group_scores;
    for (std::int64_t group = 0; group < token_.args->num_expert_group; ++group) {
      group_scores.push_back(group_score(group));
    }
    std::vector<std::int32_t> groups(group_scores.size());
    std::iota(groups.begin(), groups.end(), 0);
    sort_first(groups, token_.args->topk_group, group_scores);
    std::vector<std::int32_t> experts;
    for (const std::int32_t group : groups) {
      for (std::int64_t i = 0; i < token_.group_size(); ++i) {
        experts.push_back(static_cast<std::int32_t>(group * token_.group_size() + i));
      }
    }
    return experts;
  }

  std::vector<std::int32_t> best_experts(std::vector<std::int32_t> experts) const {
    sort_first(experts, token_.args->top_k, choices_);
    return experts;
  }

  /// Keeps the `count` indices whose values are largest, in descending order. Of equal values the
  /// first index comes first.
  static void sort_first(std::vector<std::int32_t>& indices, std::int64_t count,
                         const std::vector<float>& values) {
    std::partial_sort(indices.begin(), indices.begin() + count, indices.end(),
                      [&](std::int32_t a, std::int32_t b) {
                        const float of_a = values[static_cast<std::size_t>(a)];
                        const float of_b = values[static_cast<std::size_t>(b)];
                        return of_a > of_b || (of_a == of_b && a < b);
                      });
    indices.resize(static_cast<std::size_t>(count));
  }

  std::vector<float> weights_of(const std::vector<std::int32_t>& ids) const {
    std::vector<float> weights;
    weights.reserve(ids.size());
    for (const std::int32_t id : ids) weights.push_back(scores_[static_cast<std::size_t>(id)]);
    float sum = weights[0];
    for (std::size_t slot = 1; slot < weights.size(); ++slot) sum = sum + weights[slot];
    for (float& weight : weights) {
      if (token_.args->renormalize && sum != 0) weight = weight / sum;
      weight = weight * token_.args->routed_scaling_factor;
    }
    return weights;
  }

  const TokenToSelect& token_;
  const float m_;
  std::vector<float> scores_;
  std::vector<float> choices_;
};

}  // namespace

float contract_exponential(float x) {
  if (x < -104) return 0;
  const float n = std::rint(x * 0x1.715476p+0F);
  const float r = std::fma(n, 0x1.05c610p-29F, std::fma(n, -0x1.62e430p-1F, x));
  constexpr int kDegree = 7;
  float p = 1 / factorial(kDegree);
  for (int power = kDegree - 1; power >= 0; --power) p = std::fma(p, r, 1 / factorial(power));
  const int half = static_cast<int>(std::trunc(n / 2));
  return std::ldexp(std::ldexp(p, half), static_cast<int>(n) - half);
}

float contract_log1p(float y) {
  const float s = y / (2 + y);
  const float q = s * s;
  float p = 2.0F / 17;
  for (int divisor = 15; divisor >= 3; divisor -= 2) {
    p = std::fma(p, q, 2 / static_cast<float>(divisor));
  }
  return std::fma(p * q, s, 2 * s);
}

float contract_softplus(float v) {
  return std::max(v, 0.0F) + contract_log1p(contract_exponential(-std::abs(v)));
}

TokensToSelect::TokensToSelect(const SelectExpertsArgs& args)
    : args_(args),
      num_valid_(args.router_logits.shape[0]),
      v_(static_cast<std::size_t>(args.router_logits.shape[1])) {
  if (!args.num_valid_tokens.given()) return;
  num_valid_ = std::clamp<std::int64_t>(int32s(args.num_valid_tokens)[0], 0, num_valid_);
}

TokenToSelect TokensToSelect::read(std::int64_t t) {
  const FloatFormat format = format_of(args_.router_logits.dtype);
  for (std::size_t e = 0; e < v_.size(); ++e) {
    const std::int64_t at = t * args_.router_logits.strides[0] + static_cast<std::int64_t>(e);
    const double logit = value_of(format, float_bits_at(args_.router_logits, at));
    v_[e] = std::isnan(logit) ? -kInf : static_cast<float>(logit);
  }
  const auto* const bias = static_cast<const float*>(args_.correction_bias.data);
  return {v_, args_.correction_bias.given() ? std::span(bias, v_.size()) : std::span<const float>(),
          &args_};
}

SelectedExperts select_by_contract(const TokenToSelect& token) { return Model(token).run(); }

SelectedExperts select_by_contract(const SelectExpertsArgs& args) {
  const DefaultFloatEnvironment environment;
  const auto num_pairs = static_cast<std::size_t>(args.router_logits.shape[0] * args.top_k);
  SelectedExperts all{std::vector<std::int32_t>(num_pairs, -1), std::vector<float>(num_pairs)};
  TokensToSelect tokens(args);
  for (std::int64_t t = 0; t < tokens.num_valid(); ++t) {
    const SelectedExperts own = select_by_contract(tokens.read(t));
    std::ranges::copy(own.ids, all.ids.begin() + t * args.top_k);
    std::ranges::copy(own.weights, all.weights.begin() + t * args.top_k);
  }
  return all;
}

}  // namespace tessera::contract
