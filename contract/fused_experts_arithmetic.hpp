// The error bound of fused_experts as tessera/fused_experts.hpp derives it, step by step, in
// doubles. For the op's checker.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "float_bits.hpp"
#include "tessera/fused_experts.hpp"

namespace tessera::contract {

/// A value and the largest error that an implementation may make in it.
struct Bounded {
  double value;  ///< NaN: only a NaN is right
  double error;  ///< infinite: no bound, any value is right, a NaN too
};

inline constexpr Bounded kMustBeNan{std::numeric_limits<double>::quiet_NaN(), 0};
inline constexpr Bounded kUnbounded{0, std::numeric_limits<double>::infinity()};

/// The values and errors of a vector that rows of weights are multiplied with.
class BoundedVector {
 public:
  /// The elements are products with scales of this magnitude at most, if there are any.
  void assign(std::span<const Bounded> elements, double largest_scale = 0);

  const double* values() const { return values_.data(); }
  const double* errors() const { return errors_.data(); }
  double magnitude() const { return magnitude_; }
  bool has_errors() const { return has_errors_; }
  bool has_nan() const { return has_nan_; }
  bool is_unbounded() const { return is_unbounded_; }
  double largest_scale() const { return largest_scale_; }
  /// Whether nothing is subnormal, also once multiplied by `scale`.
  bool is_normal(double scale) const;

 private:
  std::vector<double> values_;
  std::vector<double> errors_;
  double magnitude_ = 0;  // sum of |value| + error
  double smallest_ = 0;   // magnitude other than 0
  double largest_scale_ = 0;
  bool has_errors_ = false;
  bool has_nan_ = false;
  bool is_unbounded_ = false;
};

/// A row of weights.
class WeightRow {
 public:
  /// Elements of the row, to be filled in; then call `finish`.
  std::span<double> resize(std::size_t size);
  /// The elements are products with scales of this magnitude at most, if there are any.
  void finish(double largest_scale = 0);

  double largest_scale() const { return largest_scale_; }
  std::span<const double> weights() const { return weights_; }
  double magnitude() const { return magnitude_; }

 private:
  std::vector<double> weights_;
  double magnitude_ = 0;  // sum of |weight|
  double largest_scale_ = 0;
};

/// How a product is computed.
struct ProductRule {
  std::int64_t num_roundings;  ///< by float32 of each term, at most
  bool has_scales = false;     ///< row and vector are in float8_e4m3fn, with scales
  double accumulation = 0;     ///< the error of tensor cores: alpha of the contract
};

/// scale * sum of row * vector + bias. `row` and `vector` have the same length.
Bounded product(const WeightRow& row, const BoundedVector& vector, double scale, double bias,
                const ProductRule& rule);

/// The activation of a call.
struct ActivationRule {
  explicit ActivationRule(const FusedExpertsArgs& args);

  Activation activation;
  double alpha;
  double beta;
  double limit;
};

/// round(activation) of gate and up as the first product gives them. Activations without a gate
/// ignore `up`.
Bounded rounded_activation(const ActivationRule& rule, Bounded gate, Bounded up,
                           FloatFormat format);

/// A float32 value that an implementation may keep, or round to the format.
Bounded kept_or_rounded(Bounded value, FloatFormat format);

}  // namespace tessera::contract
