// The CPU implementation of batched_align_block_size.
#pragma once

#include "core/batched_align_block_size_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Runs on the calling thread: it computes very little, and writes at the speed of memory.
Status batched_align_block_size(const core::BatchedAlignBlockSizeProblem& problem,
                                const Context& context);

}  // namespace tessera::cpu
