// Judges the outputs of any implementation of fused_moe against the contract in
// tessera/fused_moe.hpp, by the checkers of its two ops. Shares no code with the implementations,
// and does not use them.
#pragma once

#include <vector>

#include "tessera/fused_moe.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules of select_experts and of fused_experts, in the order in which they are checked.
inline constexpr Rule kFusedMoeRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes",
     "The output is [T, H], of the data type of x; weights and ids, where given, are float32[T, k] "
     "and int32[T, k]."},
    {"padding", "Tokens that do not count have ids -1 and weights +0."},
    {"valid_ids", "All other tokens have k different ids in [0, G)."},
    {"ids",
     "They are the experts with the largest choices in the groups with the largest scores, in "
     "order, as near as float32 arithmetic comes."},
    {"weights", "Every weight lies as near to the expert's weight as float32 arithmetic comes."},
    {"exact_bits", "Ids and weights have the bits of the contract's own arithmetic."},
    {"no_experts", "A token of which no pair counts has +0 everywhere."},
    {"error_bound",
     "Every other element lies as near to the formula for these ids and weights as float32 "
     "arithmetic comes in any order."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kFusedMoeRules; none if the contract holds. The outputs may hold anything. If
/// the inputs or the sizes are wrong, nothing else is checked. The output is judged for the weights
/// and ids that the call has written, and for the contract's own where it writes none; of large
/// calls a sample is, as by check_fused_experts().
std::vector<Violation> check_fused_moe(const FusedMoeArgs& args);

}  // namespace tessera::contract
