// The CPU implementations of align_block_size.
#pragma once

#include <cstddef>

#include "core/align_block_size_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// The reference: follows the contract literally, without optimisations.
Status align_block_size_reference(const core::AlignBlockSizeProblem& problem,
                                  const Context& context);
std::size_t reference_workspace_bytes(const core::AlignBlockSizeProblem& problem,
                                      const Context& context);

/// Counts, lays out and places the ids; on several threads if the batch is large.
Status align_block_size_counting_sort(const core::AlignBlockSizeProblem& problem,
                                      const Context& context);
std::size_t counting_sort_workspace_bytes(const core::AlignBlockSizeProblem& problem,
                                          const Context& context);

}  // namespace tessera::cpu
