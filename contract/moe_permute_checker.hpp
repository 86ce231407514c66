// Judges the outputs of any implementation of moe_permute against the contract in
// tessera/moe_permute.hpp, in time proportional to their length. Shares no code with the
// implementations, and does not use them.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/moe_permute.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules, in the order in which they are checked.
inline constexpr Rule kMoePermuteRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes",
     "The outputs are [capacity, H] of the type of x, int32[num_experts + 1] and int32[T, k]."},
    {"expert_offsets", "Each expert's rows begin where the whole blocks of the others before end."},
    {"inverse",
     "Pairs have the rows of their expert, in ascending order; those that do not count have -1."},
    {"token_bits", "The row of a pair that counts has the bits of its token's row of x."},
    {"padding", "All bits of the other rows in use are zero."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kMoePermuteRules; none if the contract holds. The outputs may hold anything. If
/// the inputs or the sizes are wrong, nothing else is checked.
std::vector<Violation> check_moe_permute(const MoePermuteArgs& args);

/// The rows of `rows` that a finished call says are in use; 0 if it does not.
std::int64_t rows_in_use(const MoePermuteArgs& args);

}  // namespace tessera::contract
