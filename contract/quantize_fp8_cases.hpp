// The table of cases that drives the tests of quantize_fp8, and the generator that turns a case
// into the same inputs everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "case_arguments.hpp"
#include "float_bits.hpp"
#include "random_floats.hpp"
#include "tessera/quantize_fp8.hpp"

namespace tessera::contract {

/// Where the scales of a case come from.
enum class Fp8Scales {
  kComputed,
  kUe8m0,    ///< computed, powers of two
  kGiven,    ///< ordinary ones
  kAnyBits,  ///< given, zeros, infinities, NaNs and negative ones among them
};
inline constexpr int kNumFp8Scales = 4;

struct QuantizeFp8Case {
  std::string name;  ///< unique
  std::int64_t num_tokens = 0;
  std::int64_t hidden_size = 0;
  Fp8Group group = Fp8Group::kTensor;
  FloatFormat format = kBfloat16Format;
  Fp8Scales scales = Fp8Scales::kComputed;
  FloatValues values = FloatValues::kOrdinary;
  /// One in so many groups of 32 elements holds only zeros; 0: none.
  std::int64_t zeros = 0;
  /// Elements that lie half way between two values of float8_e4m3fn, or next to that, by a scale of
  /// a power of two.
  bool has_ties = false;
  // Numbers of elements between rows.
  std::int64_t x_gap = 0;
  std::int64_t values_gap = 0;
};

/// The table, written by hand and small enough to read.
std::span<const QuantizeFp8Case> quantize_fp8_cases();

/// A random case of at most `max_elements` in each array. A pure function of its arguments, on
/// every platform.
QuantizeFp8Case random_quantize_fp8_case(std::uint64_t seed, std::int64_t max_elements);

CaseArguments make_arguments(const QuantizeFp8Case& c, std::uint64_t seed);

}  // namespace tessera::contract
