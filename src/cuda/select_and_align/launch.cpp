#include "cuda/select_and_align/launch.hpp"

#include <cstddef>

#include "core/select_and_align_problem.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/select_experts/launch.hpp"

namespace tessera::cuda {
namespace {

using core::SelectAndAlignProblem;

Status run(const SelectAndAlignProblem& problem, const Context& context) {
  if (Status s = run_select_experts(problem.selection, context); !s.ok()) return s;
  return run_align_block_size(problem.alignment, context);
}

/// That of the alignment: the selection needs none.
std::size_t workspace_bytes(const SelectAndAlignProblem& problem, const Context& context) {
  return align_block_size_workspace_bytes(problem.alignment, context);
}

Status refusal(const SelectAndAlignProblem& problem, const Context& context, bool forced) {
  return select_experts_refusal(problem.selection, context, forced);
}

}  // namespace

std::span<const core::Implementation> select_and_align_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<SelectAndAlignProblem, run, workspace_bytes, refusal>("cuda/two_ops"),
  };
  return kAll;
}

}  // namespace tessera::cuda
