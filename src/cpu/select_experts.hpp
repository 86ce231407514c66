// The CPU implementations of select_experts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/select_experts_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Works on all experts of a token at once, with AVX2 and FMA, on several threads.
Status select_experts_avx2(const core::SelectExpertsProblem& problem, const Context& context);
/// Refuses other processors.
Status select_experts_avx2_refusal(const core::SelectExpertsProblem& problem,
                                   const Context& context, bool forced);

/// The same, in what the compiler makes of it without these.
Status select_experts_portable(const core::SelectExpertsProblem& problem, const Context& context);
std::size_t select_experts_workspace_bytes(const core::SelectExpertsProblem& problem,
                                           const Context& context);

/// Follows the contract literally, on the calling thread.
Status select_experts_reference(const core::SelectExpertsProblem& problem, const Context& context);
std::size_t select_experts_reference_workspace_bytes(const core::SelectExpertsProblem& problem,
                                                     const Context& context);

/// Selects for tokens [begin, end), by code for one instruction set. `scratch` has
/// select_experts_row_bytes(problem), and begins at a cache line.
using SelectRows = void (*)(const core::SelectExpertsProblem& problem, std::int64_t begin,
                            std::int64_t end, std::byte* scratch);
void select_rows_avx2(const core::SelectExpertsProblem& problem, std::int64_t begin,
                      std::int64_t end, std::byte* scratch);

std::size_t select_experts_row_bytes(const core::SelectExpertsProblem& problem);

}  // namespace tessera::cpu
