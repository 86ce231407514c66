#include "select_experts_bounds.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>

#include "float_bits.hpp"

namespace tessera::contract {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kUnitRoundoff = 0x1p-24;
constexpr double kSmallestNormal = 0x1p-126;
constexpr double kOperation = 4;  // errors in units of kUnitRoundoff

/// The values of an operation whose exact results are 0 or more, and in `exact`.
Interval computed(Interval exact, double num_roundings) {
  // Nothing is known of a sum of 2^24 terms or more.
  const double error = std::min(1.0, num_roundings * kUnitRoundoff);
  return {std::max(0.0, exact.low * (1 - error) - kSmallestNormal),
          exact.high / (1 - error) + kSmallestNormal};
}

/// The exact results of a function that rises with its argument, of which `x` is an argument whose
/// exponential a program takes.
template <typename Function>
Interval around(double x, Function function) {
  if (!std::isfinite(x)) return {function(x), function(x)};
  const double error = (5 + 3 * std::abs(x)) * kUnitRoundoff;
  return {function(x - error), function(x + error)};
}

double exponential(double x) { return std::exp(x); }

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

Interval sqrt_softplus(double x) {
  const Interval under_root = computed(around(x, softplus), 2 * kOperation);
  return computed({std::sqrt(under_root.low), std::sqrt(under_root.high)}, kOperation);
}

std::vector<Interval> softmax(std::span<const float> v, double m) {
  std::vector<Interval> scores;
  Interval sum{0, 0};
  for (const float value : v) {
    const Interval term = computed(around(value - m, exponential), 0);
    sum = {sum.low + term.low, sum.high + term.high};
    scores.push_back(term);
  }
  sum = computed(sum, static_cast<double>(v.size()));
  for (Interval& score : scores) {
    score = computed({score.low / sum.high, score.high / sum.low}, kOperation);
  }
  return scores;
}

/// The sum of two float32 values in these intervals, rounded to float32 or not; -inf for a NaN.
Interval sum_of(Interval a, Interval b) {
  const double low = a.low + b.low;
  const double high = a.high + b.high;
  if (std::isnan(low) || std::isnan(high)) return {-kInf, -kInf};
  return {std::min(low, rounded(kFloat32Format, low)),
          std::max(high, rounded(kFloat32Format, high))};
}

/// The quotients of a weight, and its sum with weights whose sum is `others`.
Interval share_of(Interval weight, Interval others) {
  const double largest = weight.high + others.low;
  const double smallest = weight.low + others.high;
  return {smallest == 0 ? 0 : weight.low / smallest, largest == 0 ? 0 : weight.high / largest};
}

}  // namespace

std::vector<Interval> score_bounds(const TokenToSelect& token) {
  const std::span<const float> v = token.v;
  const double m = *std::max_element(v.begin(), v.end());
  std::vector<Interval> scores(v.size(), Interval{0, 0});
  if (m == -kInf) return scores;
  const Scoring scoring = token.args->scoring;
  if (scoring != Scoring::kSigmoid && m == kInf) {
    const auto n = static_cast<double>(std::count(v.begin(), v.end(), static_cast<float>(m)));
    for (std::size_t e = 0; e < v.size(); ++e) {
      if (v[e] == m) scores[e] = computed({1 / n, 1 / n}, kOperation);
    }
    return scores;
  }
  if (scoring == Scoring::kSoftmax) scores = softmax(v, m);
  for (std::size_t e = 0; e < v.size(); ++e) {
    if (v[e] == -kInf) {
      scores[e] = {0, 0};
    } else if (scoring == Scoring::kSigmoid) {
      scores[e] = computed(around(v[e], sigmoid), 2 * kOperation);
    } else if (scoring == Scoring::kSqrtSoftplus) {
      scores[e] = sqrt_softplus(v[e]);
    }
  }
  return scores;
}

std::vector<Interval> choice_bounds(const TokenToSelect& token,
                                    const std::vector<Interval>& scores) {
  std::vector<Interval> choices;
  for (std::size_t e = 0; e < scores.size(); ++e) {
    const double v = token.v[e];
    if (!token.has_bias() || v == -kInf) {
      choices.push_back({v, v});
    } else {
      choices.push_back(sum_of(scores[e], {token.bias[e], token.bias[e]}));
    }
  }
  return choices;
}

std::vector<Interval> group_bounds(const TokenToSelect& token,
                                   const std::vector<Interval>& choices) {
  const auto size = static_cast<std::size_t>(token.group_size());
  const std::size_t summed = token.has_bias() ? std::min<std::size_t>(size, 2) : 1;
  std::vector<Interval> scores;
  std::vector<double> lows(size);
  std::vector<double> highs(size);
  for (std::size_t begin = 0; begin < choices.size(); begin += size) {
    for (std::size_t i = 0; i < size; ++i) {
      lows[i] = choices[begin + i].low;
      highs[i] = choices[begin + i].high;
    }
    // The n-th largest value lies between the n-th largest of the bounds on either side.
    const auto end = static_cast<std::ptrdiff_t>(summed);
    std::partial_sort(lows.begin(), lows.begin() + end, lows.end(), std::greater<>());
    std::partial_sort(highs.begin(), highs.begin() + end, highs.end(), std::greater<>());
    const Interval best{lows[0], highs[0]};
    scores.push_back(summed == 1 ? best : sum_of(best, {lows[1], highs[1]}));
  }
  return scores;
}

std::vector<Interval> weight_bounds(const TokenToSelect& token, const std::vector<Interval>& scores,
                                    std::span<const std::int32_t> ids) {
  std::vector<Interval> weights;
  Interval sum{0, 0};
  for (const std::int32_t id : ids) {
    weights.push_back(scores[static_cast<std::size_t>(id)]);
    sum = {sum.low + weights.back().low, sum.high + weights.back().high};
  }
  const double factor = token.args->routed_scaling_factor;
  for (Interval& weight : weights) {
    if (weight.high == 0) continue;  // exactly 0
    if (token.args->renormalize) {
      weight = share_of(weight, {sum.low - weight.low, sum.high - weight.high});
      weight = computed(weight, kOperation + static_cast<double>(ids.size()));
    }
    const Interval scaled =
        computed({weight.low * std::abs(factor), weight.high * std::abs(factor)}, kOperation);
    weight = factor < 0 ? Interval{-scaled.high, -scaled.low} : scaled;
    weight = {rounded(kFloat32Format, weight.low), rounded(kFloat32Format, weight.high)};
  }
  return weights;
}

}  // namespace tessera::contract
