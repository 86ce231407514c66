// Judges the outputs of any implementation of select_and_align against the contract in
// tessera/select_and_align.hpp. The checker of select_experts judges weights and ids. The checker
// of align_block_size judges the other outputs, against the ids that the call returned. Shares no
// code with the implementations, and does not use them.
#pragma once

#include <vector>

#include "tessera/select_and_align.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules of select_experts and of align_block_size, in the order in which they are checked.
/// `block_padding` is the rule `padding` of align_block_size.
inline constexpr Rule kSelectAndAlignRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes", "Every output has the contract's type and its size, or at least that."},
    {"padding", "Tokens that do not count have ids -1 and weights +0."},
    {"valid_ids", "All other tokens have k different ids in [0, E)."},
    {"ids",
     "They are the experts with the largest choices in the groups with the largest scores, in "
     "order, as near as float32 arithmetic comes."},
    {"weights", "Every weight lies as near to the expert's weight as float32 arithmetic comes."},
    {"exact_bits", "Ids and weights have the bits of the contract's own arithmetic."},
    {"num_tokens_post_pad", "The padded total is block_size times the number of blocks."},
    {"group_members", "A group's slots hold only indices of pairs of that group, by the ids."},
    {"no_repeats", "No index stands twice."},
    {"stable_order", "Inside a group the indices ascend."},
    {"block_padding", "The rest of a group's last block holds T * k."},
    {"sorted_tail", "All of sorted_token_ids past the last group holds T * k."},
    {"block_experts", "expert_ids holds the expert of every block."},
    {"expert_tail", "All of expert_ids past the last block holds -1."},
    {"expert_counts", "expert_counts, if given, holds the size of every group."},
    {"statistics", "statistics, if given, holds what the groups and blocks add up to."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kSelectAndAlignRules; none if the contract holds. The outputs may hold anything.
/// If the inputs or the sizes are wrong, nothing else is checked.
std::vector<Violation> check_select_and_align(const SelectAndAlignArgs& args);

}  // namespace tessera::contract
