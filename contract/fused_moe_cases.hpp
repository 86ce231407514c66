// The table of cases that drives the tests of fused_moe, and the generator that turns a case into
// the same inputs everywhere.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "case_arguments.hpp"
#include "fused_experts_cases.hpp"
#include "select_experts_cases.hpp"

namespace tessera::contract {

/// A case of select_experts and one of fused_experts. The second gives the numbers of tokens, slots
/// and experts; its routing and its data types of weights and ids have no effect. Weights of
/// experts that no token chooses, and rows of x without a pair that counts, are NaN.
struct FusedMoeCase {
  std::string name;  ///< unique
  SelectExpertsCase routing;
  FusedExpertsCase experts;
  bool gives_weights = false;  ///< whether topk_weights is given
  bool gives_ids = false;      ///< whether topk_ids is given
};

/// The table, written by hand and small enough to read and to run everywhere.
std::span<const FusedMoeCase> fused_moe_cases();

/// A random case of about `max_elements` at most in each array. A pure function of its arguments,
/// on every platform.
FusedMoeCase random_fused_moe_case(std::uint64_t seed, std::int64_t max_elements);

CaseArguments make_arguments(const FusedMoeCase& c, std::uint64_t seed);

}  // namespace tessera::contract
