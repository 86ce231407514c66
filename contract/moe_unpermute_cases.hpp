// The table of cases that drives the tests of moe_unpermute, and the generator that turns a case
// into the same inputs everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "case_arguments.hpp"
#include "float_bits.hpp"
#include "random_floats.hpp"
#include "tessera/moe_unpermute.hpp"

namespace tessera::contract {

/// Where the rows of the pairs are.
enum class InverseKind {
  kPermutation,  ///< every pair that counts has a row of its own, in any order
  kRepeated,     ///< pairs have rows drawn at random: some several pairs, some none
  kAnyInt32,     ///< most numbers are no row
};
inline constexpr int kNumInverseKinds = 3;

struct MoeUnpermuteCase {
  std::string name;           ///< unique
  std::int64_t num_rows = 0;  ///< of a permutation, at least the number of pairs that count
  std::int64_t num_tokens = 0;
  std::int64_t top_k = 1;
  std::int64_t hidden_size = 0;
  FloatFormat format = kBfloat16Format;  ///< of rows and output
  bool weighted = false;
  InverseKind inverse = InverseKind::kPermutation;
  /// Of 8 pairs, about so many do not count.
  int remote = 0;
  FloatValues values = FloatValues::kOrdinary;
  // So many elements lie between two rows of the input, and of the output.
  std::int64_t row_gap = 0;
  std::int64_t output_gap = 0;
};

/// The table, written by hand and small enough to read.
std::span<const MoeUnpermuteCase> moe_unpermute_cases();

/// A random case of at most `max_elements` in its rows, its output and what it adds. A pure
/// function of its arguments, on every platform.
MoeUnpermuteCase random_moe_unpermute_case(std::uint64_t seed, std::int64_t max_elements);

CaseArguments make_arguments(const MoeUnpermuteCase& c, std::uint64_t seed);

}  // namespace tessera::contract
