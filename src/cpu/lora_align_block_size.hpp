// The CPU implementation of lora_align_block_size.
#pragma once

#include <cstddef>

#include "core/lora_align_block_size_implementation.hpp"

namespace tessera::cpu {

/// Counts, lays out and places the pairs of all rows together, on the calling thread.
Status lora_align_block_size(const core::LoraAlignBlockSizeProblem& problem,
                             const Context& context);
std::size_t lora_workspace_bytes(const LoraAlignBlockSizeShape& shape);

}  // namespace tessera::cpu
