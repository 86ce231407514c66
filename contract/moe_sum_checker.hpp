// Judges the output of any implementation of moe_sum against the contract in tessera/moe_sum.hpp,
// in time proportional to the length of the input. Shares no code with the implementations, and
// does not use them.
#pragma once

#include <vector>

#include "tessera/moe_sum.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules, in the order in which they are checked. Tessera keeps all of them; programs
/// that sum in another order need not keep exact_bits.
inline constexpr Rule kMoeSumRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes", "The output is [T, H], of the input's data type."},
    {"error_bound",
     "Every element lies as near to the weighted sum as float32 arithmetic comes in any order."},
    {"exact_bits", "Every element has the bits of the sum in the order of the slots."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kMoeSumRules; none if the contract holds. The output may hold anything. If the
/// inputs or the sizes are wrong, nothing else is checked.
std::vector<Violation> check_moe_sum(const MoeSumArgs& args);

}  // namespace tessera::contract
