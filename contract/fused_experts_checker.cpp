#include "fused_experts_checker.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

#include "arrays.hpp"
#include "float8_values.hpp"
#include "float_bits.hpp"
#include "fused_experts_bounds.hpp"
#include "fused_experts_operands.hpp"

namespace tessera::contract {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool has_shape(const TensorView& view, std::initializer_list<std::int64_t> shape) {
  return std::equal(shape.begin(), shape.end(), view.shape);
}

/// Rows apart, or the same with the last two axes exchanged.
bool has_rows_or_is_transposed(TensorView view) {
  if (has_rows(view, 3)) return true;
  std::swap(view.shape[1], view.shape[2]);
  std::swap(view.strides[1], view.strides[2]);
  return has_rows(view, 3);
}

/// Of an infinity the power of two beyond the largest value, which rounding takes it for.
double value_with_no_infinity(FloatFormat format, std::uint32_t bits) {
  const double value = value_of(format, bits);
  return std::isinf(value) ? std::copysign(std::ldexp(1.0, format.max_exponent + 1), value) : value;
}

/// The distance from a sum to the nearest number that rounds to an element which is no NaN.
double distance(FloatFormat format, std::uint32_t bits, double sum) {
  const double found = value_with_no_infinity(format, bits);
  if (rounded(format, sum) == value_of(format, bits)) return 0;
  std::uint32_t neighbour = 0;
  if (found == 0) {
    neighbour = sum < 0 ? format.sign_bit() + 1 : 1;
  } else {
    neighbour = std::abs(found) < std::abs(sum) && found * sum > 0 ? bits + 1 : bits - 1;
  }
  return std::abs((found + value_with_no_infinity(format, neighbour)) / 2 - sum);
}

/// The share of its bound that an element uses.
double share_used(FloatFormat format, std::uint32_t bits, Bounded sum) {
  const double found = value_of(format, bits);
  if (std::isinf(sum.error)) return 0;
  if (std::isnan(sum.value) || std::isnan(found)) {
    return std::isnan(sum.value) && std::isnan(found) ? 0 : kInfinity;
  }
  const double error = distance(format, bits, sum.value);
  return error == 0 ? 0 : error / sum.error;
}

/// Whether an element lies within its bound.
bool allows(FloatFormat format, Bounded sum, double found) {
  if (std::isinf(sum.error)) return true;
  if (std::isnan(sum.value)) return std::isnan(found);
  return rounded(format, sum.value - sum.error) <= found &&
         found <= rounded(format, sum.value + sum.error);
}

class Checker : private ViolationCollector {
 public:
  explicit Checker(const FusedExpertsArgs& args) : args_(args) {}

  std::vector<Violation> run() {
    check_arrays();
    if (none()) check_numbers();
    if (none()) check_scales();
    if (none()) {
      check_rows("output", args_.output, output_dtype(), args_.x.shape[0], args_.x.shape[1]);
    }
    if (!none()) return in_order(kFusedExpertsRules);
    const DefaultFloatEnvironment environment;
    check_tokens_without_pairs();
    check_elements();
    return in_order(kFusedExpertsRules);
  }

 private:
  void check_arrays() {
    const TensorView& x = args_.x;
    if (!(is_float(x.dtype) || is_fp8(x)) || !has_rows(x, 2) || x.shape[1] == 0) {
      invalid_input("x",
                    "[T, H] float16, bfloat16, float32 or float8_e4m3fn values in contiguous rows",
                    describe_axes(x));
      return;
    }
    const TensorView& w13 = args_.w13;
    const TensorView& w2 = args_.w2;
    const std::int64_t hidden = x.shape[1];
    if (!(same(w13.dtype, x.dtype) || is_fp8(w13)) || !has_rows_or_is_transposed(w13) ||
        w13.shape[0] == 0 || w13.shape[2] != hidden) {
      invalid_input(
          "w13", "[E, N, H] values of the data type of x or float8_e4m3fn, contiguous along H or N",
          describe_axes(w13));
    } else if (!same(w2.dtype, w13.dtype) || !has_rows_or_is_transposed(w2) ||
               w2.shape[0] != w13.shape[0] || w2.shape[1] != hidden || w2.shape[2] == 0) {
      invalid_input("w2", "[E, H, F] values of the data type of w13, contiguous along F or H",
                    describe_axes(w2));
    }
    const TensorView& weights = args_.topk_weights;
    const TensorView& ids = args_.topk_ids;
    if (!is_float(weights.dtype) || !has_rows(weights, 2) || weights.shape[0] != x.shape[0] ||
        weights.shape[1] == 0) {
      invalid_input("topk_weights", "[T, k] float16, bfloat16 or float32 values in contiguous rows",
                    describe_axes(weights));
    } else if ((!same(ids.dtype, kInt32) && !same(ids.dtype, kInt64)) || !has_rows(ids, 2) ||
               !has_shape(ids, {x.shape[0], weights.shape[1]})) {
      invalid_input("topk_ids", "[T, k] int32 or int64 values in contiguous rows",
                    describe_axes(ids));
    }
    TensorView map = args_.expert_map;
    map.num_elements = map.shape[0];  // only the axis counts
    if (map.given() && (!same(map.dtype, kInt32) || !has_rows(map, 1))) {
      invalid_input("expert_map", "[G] contiguous int32 values", describe_axes(map));
    }
    if (none()) check_bias("w13_bias", args_.w13_bias, w13.shape[1]);
    if (none()) check_bias("w2_bias", args_.w2_bias, hidden);
  }

  void check_bias(const char* name, const TensorView& bias, std::int64_t length) {
    if (!bias.given()) return;
    if (!same(bias.dtype, output_dtype()) || !has_rows(bias, 2) ||
        !has_shape(bias, {args_.w13.shape[0], length})) {
      invalid_input(
          name,
          "[E, rows of its product] values of the data type of the output, in contiguous rows",
          describe_axes(bias));
    }
  }

  static bool is_fp8(const TensorView& view) { return same(view.dtype, kFloat8E4m3); }

  /// Any float's with x in float8_e4m3fn.
  DLDataType output_dtype() const {
    if (!is_fp8(args_.x)) return args_.x.dtype;
    return is_float(args_.output.dtype) ? args_.output.dtype : kFloat32;
  }

  void check_scales() {
    const ScaleFault fault = fault_of_scales(args_);
    if (fault.name != nullptr) invalid_input(fault.name, fault.expected.c_str(), fault.found);
  }

  void check_numbers() {
    const auto activation = static_cast<std::int32_t>(args_.activation);
    if (activation < 0 || activation >= std::ssize(kActivationNames)) {
      invalid_input("activation", "one of the activations", std::to_string(activation));
      return;
    }
    const std::int64_t rows = (has_gate(args_.activation) ? 2 : 1) * args_.w2.shape[2];
    if (args_.w13.shape[1] != rows) {
      invalid_input("w13", "as many rows per expert as the activation takes",
                    describe_axes(args_.w13));
    }
    if (args_.apply_router_weight_on_input && args_.topk_ids.shape[1] != 1) {
      invalid_input("apply_router_weight_on_input", "false where k is not 1", "true");
    }
    const auto check = [&](const char* name, float value, bool is_good) {
      if (std::isnan(value) || (is_good && is_swigluoai(args_.activation))) return;
      invalid_input(name, "a parameter of swigluoai in its range", Number(double{value}).text());
    };
    check("swiglu_alpha", args_.swiglu_alpha, std::isfinite(args_.swiglu_alpha));
    check("swiglu_beta", args_.swiglu_beta, std::isfinite(args_.swiglu_beta));
    check("swiglu_limit", args_.swiglu_limit, args_.swiglu_limit > 0);
  }

  void check_tokens_without_pairs() {
    for (std::int64_t token = 0; token < args_.x.shape[0]; ++token) {
      if (has_pairs(args_, token)) continue;
      for (std::int64_t column = 0; column < args_.x.shape[1]; ++column) {
        const std::uint32_t found = output_bits(token, column);
        if (found == 0) continue;
        report_element("no_experts", token, column, 0.0, value_of(format_, found), "+0");
        return;
      }
    }
  }

  void check_elements() {
    for_each_bound(args_, [&](std::int64_t token, std::int64_t column, Bounded sum) {
      const std::uint32_t bits = output_bits(token, column);
      const double found = value_of(format_, bits);
      if (allows(format_, sum, found)) return;
      if (std::isnan(sum.value)) {
        report_element("error_bound", token, column, sum.value, found, "NaN");
        return;
      }
      const double low = rounded(format_, sum.value - sum.error);
      const double high = rounded(format_, sum.value + sum.error);
      const std::string text = Number(low).text();
      std::array<char, 64> remark{};
      const double share = share_used(format_, bits, sum);
      if (std::isfinite(share)) {
        std::snprintf(remark.data(), remark.size(), ", %.3g times the bound", share);
      }
      report_element("error_bound", token, column, low, found,
                     low < high ? "a value in [" + text + ", " + Number(high).text() + "]" : text,
                     remark.data());
    });
  }

  std::uint32_t output_bits(std::int64_t token, std::int64_t column) const {
    return float_bits_at(args_.output, token * args_.output.strides[0] + column);
  }

  void report_element(const std::string& rule, std::int64_t token, std::int64_t column,
                      double expected, double found, const std::string& expected_text,
                      const std::string& remark = "") {
    add({rule, "output", token * args_.x.shape[1] + column, expected, found,
         rule + ": output[" + std::to_string(token) + ", " + std::to_string(column) +
             "]: expected " + expected_text + ", found " + Number(found).text() + remark});
  }

  const FusedExpertsArgs& args_;
  const FloatFormat format_ = format_of(args_.output.dtype);
};

}  // namespace

std::vector<Violation> check_fused_experts(const FusedExpertsArgs& args) {
  return Checker(args).run();
}

double fused_experts_bound_used(const FusedExpertsArgs& args) {
  const DefaultFloatEnvironment environment;
  const FloatFormat format = format_of(args.output.dtype);
  double used = 0;
  for_each_bound(args, [&](std::int64_t token, std::int64_t column, Bounded sum) {
    const std::uint32_t bits = float_bits_at(args.output, token * args.output.strides[0] + column);
    used = std::max(used, share_used(format, bits, sum));
  });
  return used;
}

}  // namespace tessera::contract
