// The CPU implementations of moe_unpermute.
#pragma once

#include "core/moe_unpermute_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Sums sixteen columns at a time with AVX-512, on several threads.
Status moe_unpermute_avx512(const core::MoeUnpermuteProblem& problem, const Context& context);
/// Refuses other processors.
Status moe_unpermute_avx512_refusal(const core::MoeUnpermuteProblem& problem,
                                    const Context& context, bool forced);

/// Sums eight columns at a time with AVX2, FMA and F16C, on several threads.
Status moe_unpermute_avx2(const core::MoeUnpermuteProblem& problem, const Context& context);
/// Refuses other processors.
Status moe_unpermute_avx2_refusal(const core::MoeUnpermuteProblem& problem, const Context& context,
                                  bool forced);

/// Sums as many columns at a time as the compiler vectorises, on several threads.
Status moe_unpermute_portable(const core::MoeUnpermuteProblem& problem, const Context& context);

/// Follows the contract literally, on the calling thread.
Status moe_unpermute_reference(const core::MoeUnpermuteProblem& problem, const Context& context);

}  // namespace tessera::cpu
