// Judges the outputs of any implementation of lora_align_block_size against the contract in
// tessera/lora_align_block_size.hpp: runs the checker of align_block_size on every row, in
// O(max_loras * (N + E) + length of the outputs). Shares no code with the implementations.
#pragma once

#include <span>
#include <vector>

#include "align_block_size_checker.hpp"
#include "tessera/lora_align_block_size.hpp"
#include "violations.hpp"

namespace tessera::contract {

/// The rules of align_block_size, without the four about outputs that this op does not have.
inline constexpr std::span<const Rule> kLoraAlignBlockSizeRules =
    std::span(kAlignBlockSizeRules).first<std::size(kAlignBlockSizeRules) - 4>();

/// Takes the arguments of a finished call, in host memory. Returns at most one violation per rule,
/// in the order of the rules and for the first row that breaks it; none if the contract holds.
/// `position` counts from the start of the array; the message has the adapter and the position in
/// its row. Outputs may hold anything. If the inputs or the sizes are wrong, nothing else is
/// checked.
std::vector<Violation> check_lora_align_block_size(const LoraAlignBlockSizeArgs& args);

}  // namespace tessera::contract
