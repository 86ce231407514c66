// For which problems the one launch of select_and_align is there, and how it is made. Pure
// functions of the problem in host code, so that they can be tested without a GPU.
#pragma once

#include <cstddef>

#include "core/select_and_align_problem.hpp"
#include "cuda/select_and_align/kernel.hpp"

namespace tessera::cuda {

struct SelectAndAlignPlan {
  SelectAndAlignInstance instance;
  std::size_t shared_bytes;
};

/// The plan for a problem that the kernel can run.
SelectAndAlignPlan plan_select_and_align(const core::SelectAndAlignProblem& problem);

/// Why the kernel cannot run a problem; null if it can.
const char* one_cta_limitation(const core::SelectAndAlignProblem& problem);

/// Whether the kernel, if it can run a problem, takes less time than the launches of the two ops.
bool prefers_one_cta(const core::SelectAndAlignProblem& problem);

}  // namespace tessera::cuda
