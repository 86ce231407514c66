// Judges the output of any implementation of moe_unpermute against the contract in
// tessera/moe_unpermute.hpp, in time proportional to the number of elements that it adds. Shares no
// code with the implementations, and does not use them.
#pragma once

#include <vector>

#include "tessera/moe_unpermute.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules, in the order in which they are checked. Tessera keeps all of them; programs
/// that sum in another order need not keep exact_bits.
inline constexpr Rule kMoeUnpermuteRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes", "The output is [T, H], of the rows' data type."},
    {"error_bound",
     "Every element lies as near to the weighted sum of the rows that count as float32 arithmetic "
     "comes in any order."},
    {"exact_bits", "Every element has the bits of the sum in the order of the slots."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kMoeUnpermuteRules; none if the contract holds. The output may hold anything. If
/// the inputs or the sizes are wrong, nothing else is checked.
std::vector<Violation> check_moe_unpermute(const MoeUnpermuteArgs& args);

}  // namespace tessera::contract
