// select_and_align as the launches of select_experts, and after them those of align_block_size.
#pragma once

#include <cstddef>

#include "core/select_and_align_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cuda {

/// Runs what the two ops themselves would run.
Status run_two_ops(const core::SelectAndAlignProblem& problem, const Context& context);

/// That of the alignment: the selection needs none.
std::size_t two_ops_workspace_bytes(const core::SelectAndAlignProblem& problem,
                                    const Context& context);

/// Refuses what select_experts does.
Status two_ops_refusal(const core::SelectAndAlignProblem& problem, const Context& context,
                       bool is_asked_for);

}  // namespace tessera::cuda
