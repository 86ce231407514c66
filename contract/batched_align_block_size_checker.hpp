// Judges the outputs of any implementation of batched_align_block_size against the contract in
// tessera/batched_align_block_size.hpp, in time proportional to the length of the arrays. Shares no
// code with the implementations, and does not use them.
#pragma once

#include <vector>

#include "tessera/batched_align_block_size.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules, in the order in which they are checked.
inline constexpr Rule kBatchedAlignBlockSizeRules[] = {
    {"valid_inputs", "The inputs lie in the op's domain; a correct call refuses all others."},
    {"output_sizes", "Every output is an int32 array of at least the contract's size."},
    {"num_tokens_post_pad", "The padded total is block_size times the number of blocks."},
    {"group_members", "A batch's slots hold the indices of its first rows, ascending."},
    {"padding", "The rest of a batch's last block holds the filler."},
    {"sorted_tail", "All of sorted_token_ids past the last batch holds the filler."},
    {"block_experts", "expert_ids holds the batch of every block."},
    {"expert_tail", "All of expert_ids past the last block holds tail_expert."},
};

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of kBatchedAlignBlockSizeRules; none if the contract holds. Outputs may hold
/// anything. If the inputs or the sizes are wrong, nothing else is checked.
std::vector<Violation> check_batched_align_block_size(const BatchedAlignBlockSizeArgs& args);

}  // namespace tessera::contract
