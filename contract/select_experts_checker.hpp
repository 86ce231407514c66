// Judges the outputs of any implementation of select_experts against the contract in
// tessera/select_experts.hpp, in time proportional to the number of logits, up to the logarithms of
// sorting each token's. Shares no code with the implementations, and does not use them.
//
// `ids` and `weights` ask whether float32 arithmetic may give the outputs, in whatever order and
// with whatever elementary functions: contract/select_experts_bounds.hpp derives the intervals that
// scores, choices, group scores and weights lie in. Without a bias choices are the logits, and have
// no error: then only one output is right. With one, expert a may come before b unless all of b's
// interval lies above a's; of equal exact choices the first comes first.
#pragma once

#include <vector>

#include "tessera/select_experts.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules, in the order in which they are checked. Tessera keeps all of them; programs with
/// other elementary functions or sums need not keep exact_bits.
inline constexpr Rule kSelectExpertsRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes", "The weights are float32[T, k], the ids int32[T, k]."},
    {"padding", "Tokens that do not count have ids -1 and weights +0."},
    {"valid_ids", "All other tokens have k different ids in [0, E)."},
    {"ids",
     "They are the experts with the largest choices in the groups with the largest scores, in "
     "order, as near as float32 arithmetic comes."},
    {"weights", "Every weight lies as near to the expert's weight as float32 arithmetic comes."},
    {"exact_bits", "Ids and weights have the bits of the contract's own arithmetic."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kSelectExpertsRules; none if the contract holds. The outputs may hold anything.
/// If the inputs or the sizes are wrong, nothing else is checked; ids and weights of a token whose
/// ids are not valid are compared by exact_bits alone.
std::vector<Violation> check_select_experts(const SelectExpertsArgs& args);

/// Checks valid_inputs alone: without outputs.
std::vector<Violation> check_inputs_of_select_experts(const SelectExpertsArgs& args);

}  // namespace tessera::contract
