#include "quantize_fp8_checker.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "arrays.hpp"
#include "float8_values.hpp"
#include "float_bits.hpp"

namespace tessera::contract {
namespace {

constexpr std::int64_t kSide = 128;  // of a block
constexpr int kNan = kFp8Nan;
constexpr int kLargest = kLargestFp8;

/// Whether `found` is one of the values around a quotient: both are the same if it is a value.
bool is_around(double value, int found) {
  if (std::isnan(value)) return (found & 0x7f) == kNan;
  if ((found & 0x7f) == kNan) return false;
  const double magnitude = std::abs(value);
  const int lower = largest_fp8_below(magnitude);
  const bool has_upper = lower < kLargest && fp8_magnitude_of(lower) != magnitude;
  const int bits = found & 0x7f;
  const bool is_sign_right = ((found & 0x80) != 0) == std::signbit(value);
  return (is_sign_right || bits == 0) && (bits == lower || (has_upper && bits == lower + 1));
}

std::string text_of_bits(int bits) {
  std::array<char, 8> hex{};
  std::snprintf(hex.data(), hex.size(), "0x%02x", bits);
  return Number(fp8_value_of(bits)).text() + " (" + hex.data() + ")";
}

std::string text_of_float(float value) {
  std::array<char, 16> hex{};
  std::snprintf(hex.data(), hex.size(), "0x%08x", std::bit_cast<std::uint32_t>(value));
  return Number(double{value}).text() + " (" + hex.data() + ")";
}

class Checker : private ViolationCollector {
 public:
  explicit Checker(const QuantizeFp8Args& args)
      : args_(args), num_tokens_(args.x.shape[0]), hidden_size_(args.x.shape[1]) {}

  std::vector<Violation> run() {
    check_inputs();
    if (none()) check_sizes();
    if (none()) check_groups();
    return in_order(kQuantizeFp8Rules);
  }

 private:
  void check_inputs() {
    if (!is_float(args_.x.dtype) || !has_rows(args_.x, 2)) {
      invalid_input("x", "[T, H] float16, bfloat16 or float32 values in contiguous rows",
                    describe_axes(args_.x));
    }
    const auto group = static_cast<std::int32_t>(args_.group);
    if (group < 0 || group > static_cast<std::int32_t>(Fp8Group::k128x128)) {
      invalid_input("group", "a group", std::to_string(group));
    }
    if (!none() || !args_.scale.given()) return;
    if (!is_array_of_scales(args_.scale)) {
      invalid_input("scale", "one contiguous float32 value per group", describe_axes(args_.scale));
    } else if (args_.use_ue8m0) {
      invalid_input("use_ue8m0", "false where scale is given", "true");
    }
  }

  void check_sizes() {
    check_rows("values", args_.values, kFloat8E4m3, num_tokens_, hidden_size_);
    if (is_array_of_scales(args_.scales)) return;
    const std::int64_t count = num_rows() * num_columns();
    const std::array shape{num_rows(), num_columns()};
    add({"output_sizes", "scales", 0, count, args_.scales.num_elements,
         "output_sizes: scales: expected contiguous float32" + text_of(shape) + ", found " +
             describe_axes(args_.scales)});
  }

  /// With one axis, or the grid's two; a single scale may have any.
  bool is_array_of_scales(const TensorView& view) const {
    if (!same(view.dtype, kFloat32)) return false;
    if (args_.group == Fp8Group::kTensor || view.ndim == 1) {
      return view.num_elements == num_rows() * num_columns() && readable(view);
    }
    return has_contiguous_axes(view, 2) && view.shape[0] == num_rows() &&
           view.shape[1] == num_columns();
  }

  bool is_cut_in_columns() const { return args_.group >= Fp8Group::k1x128; }

  std::int64_t rows_of_group() const {
    if (args_.group == Fp8Group::kTensor) return std::max<std::int64_t>(num_tokens_, 1);
    return args_.group == Fp8Group::k128x128 ? kSide : 1;
  }
  /// The shape of the scales.
  std::int64_t num_rows() const {
    if (args_.group == Fp8Group::kTensor) return 1;
    return num_tokens_ / rows_of_group() + (num_tokens_ % rows_of_group() != 0 ? 1 : 0);
  }
  std::int64_t num_columns() const {
    return is_cut_in_columns() ? hidden_size_ / kSide + (hidden_size_ % kSide != 0 ? 1 : 0) : 1;
  }

  void check_groups() {
    const DefaultFloatEnvironment environment;
    for (std::int64_t row = 0; row < num_rows(); ++row) {
      for (std::int64_t column = 0; column < num_columns(); ++column) check_group(row, column);
    }
  }

  void check_group(std::int64_t row, std::int64_t column) {
    const std::int64_t index = row * num_columns() + column;
    const std::int64_t first_row = row * rows_of_group();
    const std::int64_t end_row = std::min(first_row + rows_of_group(), num_tokens_);
    const std::int64_t first_column = column * kSide;
    const std::int64_t end_column =
        is_cut_in_columns() ? std::min(first_column + kSide, hidden_size_) : hidden_size_;
    const auto for_each_element = [&](const auto& visit) {
      for (std::int64_t t = first_row; t < end_row; ++t) {
        for (std::int64_t h = first_column; h < end_column; ++h) visit(t, h);
      }
    };
    float expected = 0;
    if (args_.scale.given()) {
      expected = static_cast<const float*>(args_.scale.data)[index];
    } else {
      double amax = 0;
      for_each_element([&](std::int64_t t, std::int64_t h) {
        const double magnitude = std::abs(x_at(t, h));
        if (magnitude <= std::numeric_limits<float>::max()) amax = std::max(amax, magnitude);
      });
      expected = static_cast<float>(fp8_scale_of(amax, args_.use_ue8m0));
    }
    const float found = static_cast<const float*>(args_.scales.data)[index];
    for_each_element([&](std::int64_t t, std::int64_t h) { check_element(t, h, expected, found); });
    if (std::bit_cast<std::uint32_t>(found) != std::bit_cast<std::uint32_t>(expected)) {
      add("scales", "scales", index, double{expected}, double{found}, text_of_float(expected),
          text_of_float(found));
    }
  }

  void check_element(std::int64_t t, std::int64_t h, float scale, float written_scale) {
    const double x = x_at(t, h);
    const int found = value_at(t, h);
    const int expected = fp8_bits_of(rounded(kFloat32Format, x / double{scale}));
    if (found == expected &&
        std::bit_cast<std::uint32_t>(scale) == std::bit_cast<std::uint32_t>(written_scale)) {
      return;
    }
    const double quotient = rounded(kFloat32Format, x / double{written_scale});
    if (!is_around(quotient, found)) report("nearest", t, h, fp8_bits_of(quotient), found);
    if (found != expected) report("values", t, h, expected, found);
  }

  void report(const char* rule, std::int64_t t, std::int64_t h, int expected, int found) {
    if (broken(rule)) return;
    add({rule, "values", t * hidden_size_ + h, fp8_value_of(expected), fp8_value_of(found),
         std::string(rule) + ": values[" + std::to_string(t) + ", " + std::to_string(h) +
             "]: expected " + text_of_bits(expected) + ", found " + text_of_bits(found)});
  }

  double x_at(std::int64_t t, std::int64_t h) const {
    const std::int64_t stride = num_tokens_ > 1 ? args_.x.strides[0] : 0;
    return value_of(format_of(args_.x.dtype), float_bits_at(args_.x, t * stride + h));
  }

  int value_at(std::int64_t t, std::int64_t h) const {
    const std::int64_t stride = num_tokens_ > 1 ? args_.values.strides[0] : 0;
    return static_cast<const std::uint8_t*>(args_.values.data)[t * stride + h];
  }

  const QuantizeFp8Args& args_;
  const std::int64_t num_tokens_;
  const std::int64_t hidden_size_;
};

}  // namespace

std::vector<Violation> check_quantize_fp8(const QuantizeFp8Args& args) {
  return Checker(args).run();
}

}  // namespace tessera::contract
