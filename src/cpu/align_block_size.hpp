// The CPU implementations of align_block_size.
#pragma once

#include <cstddef>

#include "core/align_block_size_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// The contract, read aloud: no speed, nothing to get wrong.
Status align_block_size_reference(const core::AlignBlockSizeProblem& problem,
                                  const Context& context);
std::size_t reference_workspace_bytes(const core::AlignBlockSizeProblem& problem,
                                      const Context& context);

/// Count, lay out, place; on several threads where the batch is large.
Status align_block_size_counting_sort(const core::AlignBlockSizeProblem& problem,
                                      const Context& context);
std::size_t counting_sort_workspace_bytes(const core::AlignBlockSizeProblem& problem,
                                          const Context& context);

}  // namespace tessera::cpu
