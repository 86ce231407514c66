// The CPU implementations of fused_experts.
#pragma once

#include <cstddef>

#include "core/fused_experts_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Follows the contract literally, one token after the other, on the calling thread.
Status fused_experts_reference(const core::FusedExpertsProblem& problem, const Context& context);
std::size_t fused_experts_reference_workspace_bytes(const core::FusedExpertsProblem& problem,
                                                    const Context& context);

}  // namespace tessera::cpu
