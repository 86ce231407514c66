#include "fused_experts_operands.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <initializer_list>
#include <limits>
#include <string>

#include "arrays.hpp"
#include "float8_values.hpp"

namespace tessera::contract {
namespace {

constexpr std::int64_t kBlock = 128;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

bool is_fp8(const TensorView& view) { return same(view.dtype, kFloat8E4m3); }

std::int64_t num_blocks(std::int64_t length) { return (length + kBlock - 1) / kBlock; }

/// Whether scales have a row for each row of the weights.
bool has_rows_of(const TensorView& scales, const TensorView& weights) {
  return scales.ndim == 3 && scales.shape[1] == weights.shape[1] && scales.shape[2] == 1;
}

/// Where blocks are rows in both weights, it does not matter.
bool has_blocks(const FusedExpertsArgs& args) {
  return args.w13_scale.ndim == 3 &&
         !(has_rows_of(args.w13_scale, args.w13) && has_rows_of(args.w2_scale, args.w2));
}

/// Elements of a row of this length that share a scale.
std::int64_t group_of(const FusedExpertsArgs& args, std::int64_t length) {
  return has_blocks(args) ? kBlock : length;
}

/// The number of gate rows if all of them come before the up rows; else the number of all rows.
std::int64_t half_rows(const FusedExpertsArgs& args) {
  const bool has_halves = has_gate(args.activation) && args.activation != Activation::kSwigluoai;
  return has_halves ? args.w2.shape[2] : args.w13.shape[1];
}

double float_at(const TensorView& view, std::int64_t index) {
  return double{static_cast<const float*>(view.data)[index]};
}

/// Infinite if the scale is, so that there is no bound.
double scaled(double value, double scale) {
  return std::isinf(scale) && !std::isnan(value) ? kInfinity : value * scale;
}

/// Calls visit(begin, end) for each group of a row.
template <typename Visit>
void for_each_group(std::size_t length, std::int64_t group, const Visit& visit) {
  const auto step = static_cast<std::size_t>(group);
  for (std::size_t begin = 0; begin < length; begin += step) {
    visit(begin, std::min(begin + step, length));
  }
}

double amax_of(std::span<const double> values) {
  double amax = 0;
  for (const double value : values) {
    if (std::isfinite(value)) amax = std::max(amax, std::abs(value));
  }
  return amax;
}

struct Range {
  double low;
  double high;

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
};
constexpr Range kEmpty{kInfinity, -kInfinity};

/// What encloses a value in float8_e4m3fn times its scale.
Range quantized(Range value, Range scale) {
  Range quotient = kEmpty;
  for (const double s : {scale.low, scale.high}) {
    quotient.include(fp8_quantized(value.low, s));
    quotient.include(fp8_quantized(value.high, s));
  }
  Range product = kEmpty;
  for (const double s : {scale.low, scale.high}) {
    product.include(quotient.low * s);
    product.include(quotient.high * s);
  }
  return product;
}

/// The scales that the activation's values in a group may have; without a bound, infinite.
Range scale_of(std::span<const Bounded> group, bool use_ue8m0) {
  Range amax{0, 0};
  for (const auto& [value, error] : group) {
    if (std::isinf(error)) return {kInfinity, kInfinity};
    if (std::isnan(value)) continue;
    const double largest = std::abs(value) + error;
    const double smallest = std::max(std::abs(value) - error, 0.0);
    amax = {std::max(amax.low, smallest), std::max(amax.high, largest)};
  }
  return {fp8_scale_of(amax.low, use_ue8m0), fp8_scale_of(amax.high, use_ue8m0)};
}

Bounded quantized(Bounded a, Range scale, bool use_ue8m0) {
  if (std::isnan(a.value) || std::isnan(scale.low)) return kMustBeNan;
  if (std::isinf(a.error) || std::isinf(scale.high) || scale.low == 0) return kUnbounded;
  const Range value{a.value - a.error, a.value + a.error};
  Range result = kEmpty;
  if (use_ue8m0) {
    for (double power = scale.low; power <= scale.high; power *= 2) {
      const Range one = quantized(value, {power, power});
      result.include(one.low);
      result.include(one.high);
    }
  } else {
    result = quantized(value, scale);
  }
  return {(result.low + result.high) / 2, (result.high - result.low) / 2};
}

}  // namespace

bool has_fp8_weights(const FusedExpertsArgs& args) { return is_fp8(args.w13); }

FloatReader::FloatReader(const TensorView& view) : view_(view) {
  if (view.dtype.bits == 32) return;
  values_.resize(std::size_t{1} << view.dtype.bits);
  for (std::uint32_t bits = 0; bits < values_.size(); ++bits) {
    values_[bits] = static_cast<float>(is_fp8(view) ? fp8_value_of(static_cast<int>(bits))
                                                    : value_of(format_of(view.dtype), bits));
  }
}

double FloatReader::at(std::int64_t index) const {
  switch (view_.dtype.bits) {
    case 32:
      return float_at(view_, index);
    case 16:
      return double{values_[static_cast<const std::uint16_t*>(view_.data)[index]]};
    default:
      return double{values_[static_cast<const std::uint8_t*>(view_.data)[index]]};
  }
}

void FloatReader::read(std::int64_t begin, std::int64_t stride, std::span<double> elements) const {
  const auto copy = [&](const auto* from, const auto& value_of_element) {
    for (std::size_t i = 0; i < elements.size(); ++i) {
      elements[i] = double{value_of_element(from[begin + static_cast<std::int64_t>(i) * stride])};
    }
  };
  const auto by_bits = [&](auto bits) { return values_[bits]; };
  switch (view_.dtype.bits) {
    case 32:
      return copy(static_cast<const float*>(view_.data), [](float value) { return value; });
    case 16:
      return copy(static_cast<const std::uint16_t*>(view_.data), by_bits);
    default:
      return copy(static_cast<const std::uint8_t*>(view_.data), by_bits);
  }
}

void HiddenStates::read(std::int64_t token, BoundedVector* vector) const {
  std::vector<double> values(static_cast<std::size_t>(args_.x.shape[1]));
  x_.read(token * args_.x.strides[0], 1, values);
  double largest_scale = 0;
  if (has_fp8_weights(args_)) {
    const std::int64_t group = group_of(args_, args_.x.shape[1]);
    const TensorView& scales = args_.x_scale;
    for_each_group(values.size(), group, [&](std::size_t begin, std::size_t end) {
      const auto elements = std::span(values).subspan(begin, end - begin);
      double scale = 0;
      if (!scales.given()) {
        scale = fp8_scale_of(amax_of(elements), args_.use_ue8m0);
      } else if (scales.ndim == 2) {
        const std::int64_t index = static_cast<std::int64_t>(begin) / group;
        scale = float_at(scales, token * scales.shape[1] + index);
      } else {
        scale = float_at(scales, 0);
      }
      largest_scale = std::max(largest_scale, std::abs(scale));
      for (double& element : elements) {
        element = scaled(is_fp8(args_.x) ? element : fp8_quantized(element, scale), scale);
      }
    });
  }
  std::vector<Bounded> elements(values.size());
  std::ranges::transform(values, elements.begin(), [](double value) { return Bounded{value, 0}; });
  vector->assign(elements, largest_scale);
}

void Intermediate::assign(std::span<const Bounded> activated, BoundedVector* vector) const {
  if (!has_fp8_weights(args_)) return vector->assign(activated);
  std::vector<Bounded> elements;
  double largest_scale = 0;
  const auto group = group_of(args_, static_cast<std::int64_t>(activated.size()));
  for_each_group(activated.size(), group, [&](std::size_t begin, std::size_t end) {
    const auto values = activated.subspan(begin, end - begin);
    const bool is_given = args_.intermediate_scale.given();
    const double given = is_given ? float_at(args_.intermediate_scale, 0) : 0;
    const Range scale = is_given ? Range{given, given} : scale_of(values, args_.use_ue8m0);
    largest_scale = std::max(largest_scale, std::abs(scale.high));
    for (const Bounded& a : values) {
      elements.push_back(quantized(a, scale, args_.use_ue8m0 && !is_given));
    }
  });
  vector->assign(elements, largest_scale);
}

WeightRows::WeightRows(const FusedExpertsArgs& args, const TensorView& weights,
                       const TensorView& scales)
    : weights_(weights),
      scales_(scales),
      half_rows_(&weights == &args.w13 ? half_rows(args) : weights.shape[1]),
      reader_(weights) {}

double WeightRows::scale_at(std::int64_t expert, std::int64_t row, std::int64_t column) const {
  if (scales_.ndim == 1) return float_at(scales_, expert);
  const std::int64_t columns = scales_.shape[2];
  std::int64_t scale_row = row;
  if (!has_rows_of(scales_, weights_)) {
    scale_row =
        row < half_rows_ ? row / kBlock : num_blocks(half_rows_) + (row - half_rows_) / kBlock;
  }
  return float_at(scales_, (expert * scales_.shape[1] + scale_row) * columns +
                               (columns == 1 ? 0 : column / kBlock));
}

void WeightRows::read(std::int64_t expert, std::int64_t row, WeightRow* result) const {
  const auto elements = result->resize(static_cast<std::size_t>(weights_.shape[2]));
  reader_.read(expert * weights_.strides[0] + row * weights_.strides[1], weights_.strides[2],
               elements);
  if (!is_fp8(weights_)) return result->finish();
  double largest_scale = 0;
  for_each_group(elements.size(), kBlock, [&](std::size_t begin, std::size_t end) {
    const double scale = scale_at(expert, row, static_cast<std::int64_t>(begin));
    largest_scale = std::max(largest_scale, std::abs(scale));
    for (double& element : elements.subspan(begin, end - begin)) element = scaled(element, scale);
  });
  result->finish(largest_scale);
}

namespace {

bool is_scale(const TensorView& view, std::initializer_list<std::int64_t> shape) {
  const auto ndim = static_cast<int>(shape.size());
  return same(view.dtype, kFloat32) && has_contiguous_axes(view, ndim) &&
         std::equal(shape.begin(), shape.end(), view.shape);
}

/// One number, perhaps without an axis.
bool is_single(const TensorView& view) {
  return same(view.dtype, kFloat32) && view.ndim <= 1 && view.num_elements == 1 && readable(view);
}

std::string text_of_scale(std::initializer_list<std::int64_t> shape) {
  return text_of(std::span(shape.begin(), shape.size()));
}

ScaleFault fault_of_weight_scales(const FusedExpertsArgs& args) {
  const std::int64_t experts = args.w13.shape[0];
  const std::int64_t rows = args.w13.shape[1];
  const std::int64_t hidden = args.x.shape[1];
  const std::int64_t half = half_rows(args);
  std::string all_w13;
  std::string w2_like_w13;
  const auto fits = [&](const char* whose, std::initializer_list<std::int64_t> w13,
                        std::initializer_list<std::int64_t> w2) {
    const auto add = [&](std::string* kinds, std::initializer_list<std::int64_t> shape) {
      *kinds += (kinds->empty() ? "" : " or ") + text_of_scale(shape) + whose;
    };
    add(&all_w13, w13);
    const bool is_w13 = is_scale(args.w13_scale, w13);
    if (is_w13) add(&w2_like_w13, w2);
    return is_w13 && is_scale(args.w2_scale, w2);
  };
  if (fits(" per expert", {experts}, {experts}) ||
      fits(" per row", {experts, rows, 1}, {experts, hidden, 1}) ||
      fits(" of blocks", {experts, num_blocks(half) + num_blocks(rows - half), num_blocks(hidden)},
           {experts, num_blocks(hidden), num_blocks(args.w2.shape[2])})) {
    return {};
  }
  if (w2_like_w13.empty()) {
    return {"w13_scale", "float32 scales " + all_w13, describe_axes(args.w13_scale)};
  }
  return {"w2_scale", "float32 scales " + w2_like_w13 + ", as w13 has",
          describe_axes(args.w2_scale)};
}

ScaleFault fault_of_x_scale(const FusedExpertsArgs& args) {
  const TensorView& scale = args.x_scale;
  const std::int64_t tokens = args.x.shape[0];
  const auto fault = [&](const std::string& expected) {
    return ScaleFault{"x_scale", expected, describe_axes(scale)};
  };
  if (has_blocks(args)) {
    const auto shape = {tokens, num_blocks(args.x.shape[1])};
    if (!is_fp8(args.x)) {
      return scale.given()
                 ? fault("none where weights have scales of blocks and x is not float8_e4m3fn")
                 : ScaleFault{};
    }
    return is_scale(scale, shape) ? ScaleFault{} : fault("float32 scales " + text_of_scale(shape));
  }
  if (is_single(scale)) return {};
  if (!is_fp8(args.x)) return scale.given() ? fault("none or a float32 scale [1]") : ScaleFault{};
  return is_scale(scale, {tokens, 1})
             ? ScaleFault{}
             : fault("float32 scales [1] or " + text_of_scale({tokens, 1}));
}

}  // namespace

ScaleFault fault_of_scales(const FusedExpertsArgs& args) {
  const bool has_intermediate_scale = args.intermediate_scale.given();
  if (!has_fp8_weights(args)) {
    const struct {
      const char* name;
      const TensorView& view;
    } scales[] = {{"w13_scale", args.w13_scale},
                  {"w2_scale", args.w2_scale},
                  {"x_scale", args.x_scale},
                  {"intermediate_scale", args.intermediate_scale}};
    for (const auto& [name, view] : scales) {
      if (view.given()) return {name, "none without float8_e4m3fn", describe_axes(view)};
    }
    if (args.use_ue8m0) return {"use_ue8m0", "false without float8_e4m3fn", "true"};
    return {};
  }
  if (ScaleFault fault = fault_of_weight_scales(args); fault.name != nullptr) return fault;
  if (ScaleFault fault = fault_of_x_scale(args); fault.name != nullptr) return fault;
  const bool is_static = is_single(args.x_scale) && !has_blocks(args);
  if (has_intermediate_scale ? !(is_static && is_single(args.intermediate_scale))
                             : is_static && !is_fp8(args.x)) {
    return {"intermediate_scale",
            is_static ? "a float32 scale [1], as x_scale is" : "none where x_scale is not [1]",
            describe_axes(args.intermediate_scale)};
  }
  if (args.use_ue8m0 && has_intermediate_scale) {
    return {"use_ue8m0", "false with all scales given", "true"};
  }
  return {};
}

}  // namespace tessera::contract
