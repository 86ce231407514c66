// The CPU implementation of lora_align_block_size.
#pragma once

#include <cstddef>

#include "core/lora_align_block_size_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Counts, lays out and places the pairs of all rows together, on the calling thread.
Status lora_align_block_size(const core::LoraAlignBlockSizeProblem& problem,
                             const Context& context);
std::size_t lora_workspace_bytes(const core::LoraAlignBlockSizeProblem& problem,
                                 const Context& context);

}  // namespace tessera::cpu
