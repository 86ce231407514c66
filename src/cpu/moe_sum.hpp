// The CPU implementations of moe_sum.
#pragma once

#include "core/moe_sum_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Eight columns at a time with AVX2, FMA and F16C, on several threads.
Status moe_sum_avx2(const core::MoeSumProblem& problem, const Context& context);
/// Fails on processors without these.
Status moe_sum_avx2_refusal(const core::MoeSumProblem& problem, const Context& context,
                            bool forced);

/// Some columns at a time, as the compiler vectorises them, on several threads.
Status moe_sum_portable(const core::MoeSumProblem& problem, const Context& context);

/// The contract as it is written, on the calling thread.
Status moe_sum_reference(const core::MoeSumProblem& problem, const Context& context);

}  // namespace tessera::cpu
