// The CPU implementations of moe_permute.
#pragma once

#include <cstddef>

#include "core/moe_permute_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Counts the pairs of each expert, then copies the row of each token to all of its places, on
/// several threads.
Status moe_permute_by_tokens(const core::MoePermuteProblem& problem, const Context& context);

/// The reference: sorts the pairs, and writes the rows one after the other.
Status moe_permute_reference(const core::MoePermuteProblem& problem, const Context& context);
std::size_t moe_permute_reference_workspace_bytes(const core::MoePermuteProblem& problem,
                                                  const Context& context);

}  // namespace tessera::cpu
