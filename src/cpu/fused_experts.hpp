// The CPU implementations of fused_experts.
#pragma once

#include <cstddef>

#include "core/fused_experts_problem.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

/// Multiplies bfloat16 numbers with AVX512_BF16, on several threads, as all but the reference do.
Status fused_experts_avx512_bf16(const core::FusedExpertsProblem& problem, const Context& context);
std::size_t fused_experts_avx512_bf16_workspace_bytes(const core::FusedExpertsProblem& problem,
                                                      const Context& context);
/// Refuses other processors and other data types.
Status fused_experts_avx512_bf16_refusal(const core::FusedExpertsProblem& problem,
                                         const Context& context, bool forced);

/// Multiplies numbers as float32 with AVX-512.
Status fused_experts_avx512(const core::FusedExpertsProblem& problem, const Context& context);
std::size_t fused_experts_avx512_workspace_bytes(const core::FusedExpertsProblem& problem,
                                                 const Context& context);
Status fused_experts_avx512_refusal(const core::FusedExpertsProblem& problem,
                                    const Context& context, bool forced);

/// The same with AVX2, FMA and F16C.
Status fused_experts_avx2(const core::FusedExpertsProblem& problem, const Context& context);
std::size_t fused_experts_avx2_workspace_bytes(const core::FusedExpertsProblem& problem,
                                               const Context& context);
Status fused_experts_avx2_refusal(const core::FusedExpertsProblem& problem, const Context& context,
                                  bool forced);

/// The same in vectors that the compiler has for every processor.
Status fused_experts_portable(const core::FusedExpertsProblem& problem, const Context& context);
std::size_t fused_experts_portable_workspace_bytes(const core::FusedExpertsProblem& problem,
                                                   const Context& context);

/// Follows the contract literally, one token after the other, on the calling thread.
Status fused_experts_reference(const core::FusedExpertsProblem& problem, const Context& context);
std::size_t fused_experts_reference_workspace_bytes(const core::FusedExpertsProblem& problem,
                                                    const Context& context);

}  // namespace tessera::cpu
