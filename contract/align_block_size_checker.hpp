// Judges the outputs of any implementation of align_block_size against the contract in
// tessera/align_block_size.hpp, in O(N + E + length of the outputs). Shares no code with the
// implementations, and does not use them.
#pragma once

#include <vector>

#include "tessera/align_block_size.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules, in the order in which they are checked.
inline constexpr Rule kAlignBlockSizeRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes", "Every output has the contract's type and at least its size."},
    {"num_tokens_post_pad", "The padded total is block_size times the number of blocks."},
    {"group_members", "A group's slots hold only indices of pairs of that group."},
    {"no_repeats", "No index stands twice."},
    {"stable_order", "Inside a group the indices ascend."},
    {"padding", "The rest of a group's last block holds N."},
    {"sorted_tail", "All of sorted_token_ids past the last group holds N."},
    {"block_experts", "expert_ids holds the expert of every block."},
    {"expert_tail", "All of expert_ids past the last block holds tail_expert, or its entry."},
    {"expert_counts", "expert_counts, if given, holds the size of every group."},
    {"num_dropped", "num_dropped, if given, holds the number of ids that belong nowhere."},
    {"statistics", "statistics, if given, holds what the groups and blocks add up to."},
    {"validation", "validation, if given, counts the invalid ids and entries and names the first."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kAlignBlockSizeRules; none if the contract holds. Outputs may hold anything. If
/// the inputs or the sizes are wrong, nothing else is checked.
std::vector<Violation> check_align_block_size(const AlignBlockSizeArgs& args);

}  // namespace tessera::contract
