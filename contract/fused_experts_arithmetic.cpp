#include "fused_experts_arithmetic.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tessera::contract {
namespace {

constexpr double kUnitRoundoff = 0x1p-24;
constexpr double kTiny = 0x1p-126;
constexpr double kMaxFloat32 = std::numeric_limits<float>::max();

double gamma(std::int64_t n) {
  const double nu = static_cast<double>(n) * kUnitRoundoff;
  return nu < 1 ? nu / (1 - nu) : std::numeric_limits<double>::infinity();
}

// The sums below run in lanes, which compilers turn into vectors.
constexpr std::size_t kLanes = 8;

double total(const double* lanes) {
  double sum = 0;
  for (std::size_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

struct Sums {
  double product;    ///< sum of w v
  double magnitude;  ///< sum of |w v|
};

Sums multiply(std::span<const double> w, const double* v) {
  double products[kLanes] = {};
  double magnitudes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= w.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const double term = w[i + lane] * v[i + lane];
      products[lane] += term;
      magnitudes[lane] += std::abs(term);
    }
  }
  for (; i < w.size(); ++i) {
    products[0] += w[i] * v[i];
    magnitudes[0] += std::abs(w[i] * v[i]);
  }
  return {total(products), total(magnitudes)};
}

/// sum of |w| e for e >= 0.
double multiply_magnitudes(std::span<const double> w, const double* e) {
  double sums[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= w.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      sums[lane] += std::abs(w[i + lane]) * e[i + lane];
    }
  }
  for (; i < w.size(); ++i) sums[0] += std::abs(w[i]) * e[i];
  return total(sums);
}

bool is_power_of_two(double value) {
  int exponent = 0;
  return std::abs(std::frexp(value, &exponent)) == 0.5;
}

/// Whether float32 holds scale * w * v for all terms and the bias, and every sum of some of them.
/// `magnitude` is the sum of the magnitudes of all of them, `smallest` a magnitude from which on
/// nothing that a term is computed from is subnormal.
bool is_sum_exact(std::span<const double> w, const BoundedVector& vector, double scale, double bias,
                  double magnitude, double smallest) {
  if (vector.has_errors() || !is_power_of_two(scale) || !vector.is_normal(scale)) return false;
  if (magnitude == 0) return true;
  // The smallest quantum with magnitude <= 2^24 quantum.
  const double quantum = std::ldexp(1.0, std::ilogb(magnitude) + 1 - 24);
  if (quantum < smallest || (bias != 0 && std::abs(bias) < kTiny)) return false;
  // Of magnitude 2^24 or less, so that int32 holds them if they are whole.
  const auto is_whole = [](double quanta) {
    return static_cast<double>(static_cast<std::int32_t>(quanta)) == quanta;
  };
  if (!is_whole(bias / quantum)) return false;
  const double factor = scale / quantum;
  const double* const v = vector.values();
  // Other sums mostly fail in the first block.
  constexpr std::size_t kBlock = 64;
  for (std::size_t begin = 0; begin < w.size(); begin += kBlock) {
    const std::size_t end = std::min(begin + kBlock, w.size());
    int bad = 0;
    for (std::size_t i = begin; i < end; ++i) {
      bad |= static_cast<int>(!is_whole(w[i] * v[i] * factor)) |
             (static_cast<int>(w[i] != 0) & static_cast<int>(std::abs(w[i]) < kTiny));
    }
    if (bad != 0) return false;
  }
  return true;
}

struct Interval {
  double low;
  double high;
};

Interval around(Bounded x) { return {x.value - x.error, x.value + x.error}; }

Interval rounded(FloatFormat format, Interval x) {
  return {rounded(format, x.low), rounded(format, x.high)};
}

/// No bound where an end has overflowed.
Bounded bounded(Interval x) {
  if (std::isinf(x.low) || std::isinf(x.high)) return kUnbounded;
  return {(x.low + x.high) / 2, (x.high - x.low) / 2};
}

double magnitude(Interval x) { return std::max(std::abs(x.low), std::abs(x.high)); }

Interval multiply(Interval a, Interval b) {
  const auto [low, high] =
      std::minmax({a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high});
  return {low, high};
}

/// The factor of the activation that depends on the gate alone. It has one extremum, beyond which
/// it is monotone.
double phi(const ActivationRule& rule, double z) {
  switch (rule.activation) {
    case Activation::kGelu:
    case Activation::kGeluNoMul:
      return z / 2 * std::erfc(-z / std::numbers::sqrt2);
    case Activation::kGeluTanh:
    case Activation::kGeluTanhNoMul: {
      // (1 + tanh(y)) / 2 = 1 / (1 + exp(-2 y)), without its cancellation.
      const double y = std::sqrt(2 / std::numbers::pi) * (z + 0.044715 * z * z * z);
      return z / (1 + std::exp(-2 * y));
    }
    default:
      return z / (1 + std::exp(-rule.alpha * z));
  }
}

double extremum(const ActivationRule& rule) {
  switch (rule.activation) {
    case Activation::kGelu:
    case Activation::kGeluNoMul:
      return -0.7517915247;
    case Activation::kGeluTanh:
    case Activation::kGeluTanhNoMul:
      return -0.7524614228;
    default:  // none with alpha 0
      return -1.2784645428 / rule.alpha;
  }
}

/// All values of phi over an interval.
Interval phi(const ActivationRule& rule, Interval z) {
  const double at_low = phi(rule, z.low);
  const double at_high = z.low == z.high ? at_low : phi(rule, z.high);
  double low = std::min(at_low, at_high);
  double high = std::max(at_low, at_high);
  const double turn = extremum(rule);
  if (z.low < turn && turn < z.high) {
    const double there = phi(rule, turn);
    low = std::min(low, there);
    high = std::max(high, there);
  }
  return {low, high};
}

Interval relu2(Interval z) {
  const double low = std::max(z.low, 0.0);
  const double high = std::max(z.high, 0.0);
  const double square = high * high;
  const bool is_exact = z.low == z.high && (square == 0 || square >= kTiny) &&
                        square <= kMaxFloat32 &&
                        static_cast<double>(static_cast<float>(square)) == square;
  if (is_exact) return {square, square};
  return {low * low * (1 - kUnitRoundoff) - kTiny, square * (1 + kUnitRoundoff) + kTiny};
}

/// All values that an evaluation may find for gate and up in these intervals.
Interval evaluated(const ActivationRule& rule, Interval z, Interval m) {
  if (rule.activation == Activation::kRelu2NoMul) return relu2(z);
  const Interval a = multiply(phi(rule, z), m);
  const double largest_z = magnitude(z);
  const double largest_m = magnitude(m);
  if (largest_z * largest_m == 0) return a;
  const double error = 8 * kUnitRoundoff * (largest_z * largest_m + magnitude(a)) +
                       4 * kTiny * (1 + largest_z) * (1 + largest_m);
  return {a.low - error, a.high + error};
}

double given_or(float value, float otherwise) { return std::isnan(value) ? otherwise : value; }

}  // namespace

void BoundedVector::assign(std::span<const Bounded> elements, double largest_scale) {
  largest_scale_ = largest_scale;
  values_.clear();
  errors_.clear();
  magnitude_ = 0;
  smallest_ = std::numeric_limits<double>::infinity();
  has_errors_ = has_nan_ = is_unbounded_ = false;
  for (const auto& [value, error] : elements) {
    values_.push_back(value);
    errors_.push_back(error);
    magnitude_ += std::abs(value) + error;
    if (value != 0) smallest_ = std::min(smallest_, std::abs(value));
    has_errors_ |= error != 0;
    has_nan_ |= std::isnan(value);
    is_unbounded_ |= std::isinf(error);
  }
}

bool BoundedVector::is_normal(double scale) const {
  return smallest_ * std::min(1.0, std::abs(scale)) >= kTiny;
}

std::span<double> WeightRow::resize(std::size_t size) {
  weights_.resize(size);
  return weights_;
}

void WeightRow::finish(double largest_scale) {
  largest_scale_ = largest_scale;
  magnitude_ = 0;
  for (const double weight : weights_) magnitude_ += std::abs(weight);
}

Bounded product(const WeightRow& row, const BoundedVector& vector, double scale, double bias,
                const ProductRule& rule) {
  const std::span<const double> w = row.weights();
  const Sums sums = multiply(w, vector.values());
  const double value = scale * sums.product + bias;
  if (!std::isfinite(value) || vector.is_unbounded()) {
    // Whatever a NaN meets, it makes a NaN; infinities alone have no bound.
    const bool has_nan = vector.has_nan() || std::isnan(scale) || std::isnan(bias) ||
                         std::ranges::any_of(w, [](double weight) { return std::isnan(weight); });
    return has_nan ? kMustBeNan : kUnbounded;
  }
  const double from_errors = vector.has_errors() ? multiply_magnitudes(w, vector.errors()) : 0.0;
  const double terms = sums.magnitude + from_errors;
  const double largest_scale = std::max(1.0, std::abs(scale));
  const double magnitude = std::abs(scale) * terms + std::abs(bias);
  const auto length = static_cast<double>(w.size());
  // M / K of the contract.
  const double factors = rule.has_scales
                             ? 0x1p18 * (1 + std::abs(scale)) * (1 + row.largest_scale()) *
                                   (1 + vector.largest_scale())
                             : 0;
  const double smallest = rule.has_scales ? kTiny * factors : kTiny;
  double error = 0;
  if (rule.accumulation > 0 || !is_sum_exact(w, vector, scale, bias, magnitude, smallest)) {
    const double subnormal =
        rule.has_scales
            ? 8 * kTiny * length * factors
            : 4 * kTiny * largest_scale * (length + row.magnitude() + vector.magnitude() + terms);
    error = std::abs(scale) * from_errors + gamma(rule.num_roundings) * magnitude +
            rule.accumulation * std::abs(scale) * terms + subnormal +
            length * 0x1p-52 * magnitude;  // for the sums of this function
  }
  const bool may_overflow =
      !(largest_scale * terms + std::abs(bias) + error <= kMaxFloat32) ||
      (rule.has_scales ? length * factors : std::abs(scale) * vector.magnitude()) > kMaxFloat32;
  return may_overflow ? kUnbounded : Bounded{value, error};
}

ActivationRule::ActivationRule(const FusedExpertsArgs& args)
    : activation(args.activation),
      alpha(is_swigluoai(activation) ? given_or(args.swiglu_alpha, kDefaultSwigluAlpha) : 1),
      beta(is_swigluoai(activation) ? given_or(args.swiglu_beta, kDefaultSwigluBeta) : 0),
      limit(is_swigluoai(activation) ? given_or(args.swiglu_limit, kDefaultSwigluLimit)
                                     : std::numeric_limits<double>::infinity()) {}

Bounded rounded_activation(const ActivationRule& rule, Bounded gate, Bounded up,
                           FloatFormat format) {
  if (!has_gate(rule.activation)) up = {1, 0};
  if (std::isnan(gate.value) || std::isnan(up.value)) return kMustBeNan;
  if (std::isinf(gate.error) || std::isinf(up.error)) return kUnbounded;
  Interval z = around(gate);
  Interval m = around(up);
  z = {std::min(z.low, rule.limit), std::min(z.high, rule.limit)};
  m = {std::clamp(m.low, -rule.limit, rule.limit) + rule.beta,
       std::clamp(m.high, -rule.limit, rule.limit) + rule.beta};
  if (magnitude(z) * magnitude(m) > kMaxFloat32 || magnitude(m) > kMaxFloat32) return kUnbounded;
  return bounded(rounded(format, evaluated(rule, z, m)));
}

Bounded kept_or_rounded(Bounded value, FloatFormat format) {
  if (format.precision == kFloat32Format.precision || std::isnan(value.value)) return value;
  const Interval kept = around(value);
  const auto [low, high] = rounded(format, kept);
  return bounded({std::min(kept.low, low), std::max(kept.high, high)});
}

}  // namespace tessera::contract
