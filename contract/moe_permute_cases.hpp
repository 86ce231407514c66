// The table of cases that drives the tests of moe_permute, and the generator that turns a case into
// the same inputs everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "case_arguments.hpp"
#include "tessera/moe_permute.hpp"

namespace tessera::contract {

/// Which ids the pairs of a case have.
enum class PairIds {
  kUniform,     ///< any, a token's different if there are enough
  kHot,         ///< mostly one
  kFew,         ///< three at most, so that others have no pair
  kNone,        ///< all -1
  kMixed,       ///< any; -1, and ids beyond the last and beyond 32 bits, among them
  kDuplicates,  ///< each token's are all the same
};
inline constexpr int kNumPairIds = 6;

/// The elements of x are any bits. All bits of the gaps between its rows are set.
struct MoePermuteCase {
  std::string name;  ///< unique
  std::int64_t num_tokens = 0;
  std::int64_t top_k = 1;
  std::int64_t hidden_size = 0;
  std::int64_t num_experts = 1;
  std::int64_t block_size = 1;
  DLDataType dtype{kDLBfloat, 16, 1};
  PairIds ids = PairIds::kUniform;
  bool int64_ids = false;
  std::int64_t num_global_experts = 0;  ///< entries of an expert_map; 0: there is none
  // Numbers of elements between rows.
  std::int64_t x_gap = 0;
  std::int64_t rows_gap = 0;
};

/// The table, written by hand and small enough to read.
std::span<const MoePermuteCase> moe_permute_cases();

/// A random case of at most `max_elements` in each array. A pure function of its arguments, on
/// every platform.
MoePermuteCase random_moe_permute_case(std::uint64_t seed, std::int64_t max_elements);

CaseArguments make_arguments(const MoePermuteCase& c, std::uint64_t seed);

}  // namespace tessera::contract
