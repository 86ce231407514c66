#include "weighted_sum.hpp"

#include <array>
#include <cmath>
#include <cstdio>
#include <limits>

#include "arrays.hpp"

namespace tessera::contract {
namespace {

constexpr double kMaxFloat32 = std::numeric_limits<float>::max();
constexpr double kUnitRoundoff = 0x1p-24;

/// "0.5 (0x3f00)"
std::string with_bits(FloatFormat format, std::uint32_t bits) {
  std::array<char, 9> text{};
  std::snprintf(text.data(), text.size(), "%0*x", format.bits / 4, bits);
  return Number(value_of(format, bits)).text() + " (0x" + text.data() + ")";
}

}  // namespace

bool WeightedSum::Asked::allows(double value) const {
  if (!has_bound) return true;
  return std::isnan(low) ? std::isnan(value) : low <= value && value <= high;
}

void WeightedSum::add(float weight, float x) {
  sum_ = num_terms_ == 0 ? weight * x : std::fma(weight, x, sum_);
  ++num_terms_;
  const double term = double{weight} * double{x};  // exact, since it has 48 bits
  terms_ += term;
  if (std::isfinite(term)) magnitudes_ += std::abs(term);
}

WeightedSum::Asked WeightedSum::asked(FloatFormat format) const {
  const std::uint32_t bits = bits_of(format, rounded(format, sum_));
  if (std::isnan(terms_)) return {bits, terms_, terms_, true};
  const auto k = static_cast<double>(num_terms_);
  const double gamma = k * kUnitRoundoff / (1 - k * kUnitRoundoff);
  // The last part covers the rounding of this class's own sums.
  const double bound = gamma * magnitudes_ + k * 0x1p-149 + k * 0x1p-52 * magnitudes_;
  const bool may_overflow = k * kUnitRoundoff >= 1 || magnitudes_ + bound > kMaxFloat32;
  return {bits, rounded(format, terms_ - bound), rounded(format, terms_ + bound), !may_overflow};
}

void SumChecker::check_element(const TensorView& output, std::int64_t token, std::int64_t column,
                               const WeightedSum& sum) {
  const FloatFormat format = format_of(output.dtype);
  const std::uint32_t found = float_bits_at(output, token * output.strides[0] + column);
  const WeightedSum::Asked asked = sum.asked(format);
  const double value = value_of(format, found);
  if (!asked.allows(value) && !broken("error_bound")) {
    const std::string low = Number(asked.low).text();
    add_element("error_bound", output, token, column, asked.low, value,
                asked.low < asked.high
                    ? "a value in [" + low + ", " + Number(asked.high).text() + "]"
                    : low,
                Number(value).text());
  }
  if (found != asked.bits && !broken("exact_bits")) {
    add_element("exact_bits", output, token, column, value_of(format, asked.bits), value,
                with_bits(format, asked.bits), with_bits(format, found));
  }
}

void SumChecker::add_element(const std::string& rule, const TensorView& output, std::int64_t token,
                             std::int64_t column, double expected, double found,
                             const std::string& expected_text, const std::string& found_text) {
  add({rule, "output", token * output.shape[1] + column, expected, found,
       rule + ": output[" + std::to_string(token) + ", " + std::to_string(column) + "]: expected " +
           expected_text + ", found " + found_text});
}

}  // namespace tessera::contract
