// The table of cases that drives the tests of select_experts, and the generator that turns a case
// into the same inputs everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "case_arguments.hpp"
#include "float_bits.hpp"
#include "tessera/select_experts.hpp"

namespace tessera::contract {

/// The kind of logits in a case.
enum class LogitValues {
  kOrdinary,       ///< nearly normally distributed, as a router's
  kWide,           ///< the same times 50: most exponentials are 0 or subnormal
  kFew,            ///< five values, so that there are ties
  kEqual,          ///< all the same
  kZeros,          ///< zeros of both signs
  kSpecial,        ///< ordinary, and about half NaN, infinite, zero, smallest or largest
  kNans,           ///< all NaN, of every kind
  kNanTokens,      ///< all NaN or all -inf in every second token, ordinary in the others
  kMinusInfinity,  ///< all -inf
  kInfinity,       ///< about a third +inf, the others ordinary or -inf
  kHuge,           ///< close to the largest, of both signs
  kSubnormal,      ///< subnormal or nearly so
  kAnyBits,        ///< all patterns of bits equally likely
};
inline constexpr int kNumLogitValues = 13;

/// The kind of correction bias in a case.
enum class BiasValues {
  kNone,      ///< not given
  kOrdinary,  ///< about as large as the scores
  kTies,      ///< few values, so large that sums with scores are often equal
  kEqual,     ///< 0
  kSpecial,   ///< about half NaN, infinite, zero, smallest or largest
  kHuge,      ///< close to the largest, of both signs: sums of two overflow
  kAnyBits,
};
inline constexpr int kNumBiasValues = 7;

/// Gaps between rows, and logits of tokens that do not count, are NaN.
struct SelectExpertsCase {
  std::string name = {};  ///< unique
  std::int64_t num_tokens = 0;
  std::int64_t num_experts = 1;
  std::int64_t top_k = 1;
  FloatFormat format = kFloat32Format;
  Scoring scoring = Scoring::kSoftmax;
  LogitValues logits = LogitValues::kOrdinary;
  BiasValues bias = BiasValues::kNone;
  bool renormalize = false;
  std::int64_t num_groups = 1;
  std::int64_t topk_group = 1;
  float scaling_factor = 1;
  std::optional<std::int32_t> num_valid_tokens = std::nullopt;
  std::int64_t gap = 0;  ///< number of elements between tokens
};

/// The table, written by hand and small enough to read.
std::span<const SelectExpertsCase> select_experts_cases();

/// A random case of at most `max_elements` logits, or of one. A pure function of its arguments, on
/// every platform.
SelectExpertsCase random_select_experts_case(std::uint64_t seed, std::int64_t max_elements);

CaseArguments make_arguments(const SelectExpertsCase& c, std::uint64_t seed);

}  // namespace tessera::contract
