#include "moe_sum_checker.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <span>

#include "arrays.hpp"
#include "float_bits.hpp"

namespace tessera::contract {
namespace {

constexpr double kMaxFloat32 = std::numeric_limits<float>::max();
constexpr double kUnitRoundoff = 0x1p-24;

float float_at(const TensorView& view, std::int64_t index) {
  return static_cast<const float*>(view.data)[index];
}

/// The values that the contract allows for one element.
struct Asked {
  std::uint32_t bits;  ///< by exact_bits
  /// By error_bound: the least and the largest value, or a NaN if only a NaN is right. Unused
  /// if there is no bound.
  double low;
  double high;
  bool has_bound;

  bool allows(double value) const {
    if (!has_bound) return true;
    return std::isnan(low) ? std::isnan(value) : low <= value && value <= high;
  }
};

/// "0.5 (0x3f00)"
std::string with_bits(double value, std::uint32_t bits) {
  std::array<char, 9> text{};
  std::snprintf(text.data(), text.size(), "%04x", bits);
  return Number(value).text() + " (0x" + text.data() + ")";
}

class Checker : private ViolationCollector {
 public:
  explicit Checker(const MoeSumArgs& args)
      : args_(args),
        num_tokens_(args.input.shape[0]),
        top_k_(args.input.shape[1]),
        hidden_size_(args.input.shape[2]) {}

  std::vector<Violation> run() {
    check_inputs();
    if (none()) {
      check_rows("output", args_.output, args_.input.dtype, num_tokens_, hidden_size_);
    }
    if (none()) check_elements();
    return in_order(kMoeSumRules);
  }

 private:
  void check_inputs() {
    const TensorView& input = args_.input;
    if (!is_float(input.dtype) || !has_rows(input, 3)) {
      invalid_input("input", "[T, k, H] float16, bfloat16 or float32 values in contiguous rows",
                    describe_axes(input));
    } else if (top_k_ == 0) {
      invalid_input("input", "at least one slot per token", describe_axes(input));
    }
    const TensorView& weights = args_.topk_weights;
    if (!none() || !weights.given()) return;
    if (!same(weights.dtype, kFloat32) || weights.ndim != 2 || weights.shape[0] != num_tokens_ ||
        weights.shape[1] != top_k_ || !readable(weights)) {
      invalid_input("topk_weights", "[T, k] contiguous float32 values", describe_axes(weights));
    }
  }

  void check_elements() {
    const DefaultFloatEnvironment environment;
    const FloatFormat format = format_of(args_.output.dtype);
    for (std::int64_t token = 0; token < num_tokens_; ++token) {
      for (std::int64_t column = 0; column < hidden_size_; ++column) {
        const std::uint32_t found =
            float_bits_at(args_.output, token * args_.output.strides[0] + column);
        const Asked asked = ask(format, token, column);
        const double value = value_of(format, found);
        if (!asked.allows(value) && !broken("error_bound")) {
          const std::string low = Number(asked.low).text();
          report_element("error_bound", token, column, asked.low, value,
                         asked.low < asked.high
                             ? "a value in [" + low + ", " + Number(asked.high).text() + "]"
                             : low,
                         Number(value).text());
        }
        if (found != asked.bits && !broken("exact_bits")) {
          const double expected = value_of(format, asked.bits);
          report_element("exact_bits", token, column, expected, value,
                         with_bits(expected, asked.bits), with_bits(value, found));
        }
      }
    }
  }

  Asked ask(FloatFormat format, std::int64_t token, std::int64_t column) const {
    float sum = 0;
    double terms = 0;
    double magnitudes = 0;  // of the finite terms
    for (std::int64_t slot = 0; slot < top_k_; ++slot) {
      const float x = input_at(format, token, slot, column);
      const float w = weight_at(token, slot);
      sum = slot == 0 ? w * x : std::fma(w, x, sum);
      const double term = double{w} * double{x};  // exact, since it has 48 bits
      terms += term;
      if (std::isfinite(term)) magnitudes += std::abs(term);
    }
    const std::uint32_t bits = bits_of(format, rounded(format, sum));
    if (std::isnan(terms)) return {bits, terms, terms, true};
    const auto k = static_cast<double>(top_k_);
    const double gamma = k * kUnitRoundoff / (1 - k * kUnitRoundoff);
    // The last part covers the rounding of this function's own sums.
    const double bound = gamma * magnitudes + k * 0x1p-149 + k * 0x1p-52 * magnitudes;
    const bool may_overflow = k * kUnitRoundoff >= 1 || magnitudes + bound > kMaxFloat32;
    return {bits, rounded(format, terms - bound), rounded(format, terms + bound), !may_overflow};
  }

  float input_at(FloatFormat format, std::int64_t token, std::int64_t slot,
                 std::int64_t column) const {
    const std::int64_t* strides = args_.input.strides;
    const std::int64_t index = token * strides[0] + slot * strides[1] + column;
    return static_cast<float>(value_of(format, float_bits_at(args_.input, index)));
  }

  float weight_at(std::int64_t token, std::int64_t slot) const {
    if (!args_.topk_weights.given()) return 1;
    return float_at(args_.topk_weights, token * top_k_ + slot);
  }

  void report_element(const std::string& rule, std::int64_t token, std::int64_t column,
                      double expected, double found, const std::string& expected_text,
                      const std::string& found_text) {
    add({rule, "output", token * hidden_size_ + column, expected, found,
         rule + ": output[" + std::to_string(token) + ", " + std::to_string(column) +
             "]: expected " + expected_text + ", found " + found_text});
  }

  const MoeSumArgs& args_;
  const std::int64_t num_tokens_;
  const std::int64_t top_k_;
  const std::int64_t hidden_size_;
};

}  // namespace

std::vector<Violation> check_moe_sum(const MoeSumArgs& args) { return Checker(args).run(); }

}  // namespace tessera::contract
