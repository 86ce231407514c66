// Judges the output of any implementation of fused_experts against the contract in
// tessera/fused_experts.hpp. Shares no code with the implementations, and does not use them.
#pragma once

#include <vector>

#include "tessera/fused_experts.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules, in the order in which they are checked.
inline constexpr Rule kFusedExpertsRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes",
     "The output is [T, H], of the data type of x; of any other float type if x is "
     "float8_e4m3fn."},
    {"no_experts", "A token of which no pair counts has +0 everywhere."},
    {"error_bound",
     "Every other element lies as near to the formula as float32 arithmetic comes in any order."},
};

/// Takes the arguments of a finished call, in host memory; the device of `output` tells where the
/// call ran, as products in float8_e4m3fn have a wider bound on tensor cores. Returns at most one
/// violation per rule, in the order of kFusedExpertsRules; none if the contract holds. The output
/// may hold anything. If the inputs or the sizes are wrong, nothing else is checked. error_bound is
/// checked on a sample of the elements if the call has more than kMaxCheckedMultiplyAdds
/// (fused_experts_bounds.hpp), so that a check takes about a second at most.
std::vector<Violation> check_fused_experts(const FusedExpertsArgs& args);

/// The largest share of its error bound that an element of the same sample uses: 1 or less if
/// error_bound holds, 0 if all are rounded from values without error. The inputs and the sizes must
/// be right.
double fused_experts_bound_used(const FusedExpertsArgs& args);

}  // namespace tessera::contract
