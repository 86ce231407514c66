// The CPU implementations of select_and_align, each made of one of select_experts and one of
// align_block_size. Both use the whole workspace, one after the other.
#pragma once

#include <algorithm>
#include <cstddef>

#include "core/select_and_align_problem.hpp"
#include "cpu/align_block_size.hpp"
#include "cpu/select_experts.hpp"
#include "tessera/context.hpp"
#include "tessera/status.hpp"

namespace tessera::cpu {

template <auto kSelect, auto kAlign>
Status select_and_align(const core::SelectAndAlignProblem& problem, const Context& context) {
  if (Status s = kSelect(problem.selection, context); !s.ok()) return s;
  return kAlign(problem.alignment, context);
}

template <auto kOfSelection, auto kOfAlignment>
std::size_t select_and_align_workspace_bytes(const core::SelectAndAlignProblem& problem,
                                             const Context& context) {
  return std::max(kOfSelection(problem.selection, context),
                  kOfAlignment(problem.alignment, context));
}

inline Status select_and_align_avx2_refusal(const core::SelectAndAlignProblem& problem,
                                            const Context& context, bool forced) {
  return select_experts_avx2_refusal(problem.selection, context, forced);
}

}  // namespace tessera::cpu
