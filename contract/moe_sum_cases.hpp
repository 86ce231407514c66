// The table of cases that drives the tests of moe_sum, and the generator that turns a case into the
// same inputs everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "case_arguments.hpp"
#include "float_bits.hpp"
#include "random_floats.hpp"
#include "tessera/moe_sum.hpp"

namespace tessera::contract {

struct MoeSumCase {
  std::string name;  ///< unique
  std::int64_t num_tokens = 0;
  std::int64_t top_k = 1;
  std::int64_t hidden_size = 0;
  FloatFormat format = kBfloat16Format;  ///< of input and output
  bool weighted = false;
  FloatValues values = FloatValues::kOrdinary;
  // Numbers of elements between rows: of a token's slots, of tokens, and of the output.
  std::int64_t slot_gap = 0;
  std::int64_t token_gap = 0;
  std::int64_t output_gap = 0;
};

/// The table, written by hand and small enough to read.
std::span<const MoeSumCase> moe_sum_cases();

/// A random case of at most `max_elements` in its input. A pure function of its arguments, on every
/// platform.
MoeSumCase random_moe_sum_case(std::uint64_t seed, std::int64_t max_elements);

CaseArguments make_arguments(const MoeSumCase& c, std::uint64_t seed);

}  // namespace tessera::contract
