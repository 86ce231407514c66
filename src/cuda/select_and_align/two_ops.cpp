#include "cuda/select_and_align/two_ops.hpp"

#include "cuda/align_block_size/launch.hpp"
#include "cuda/select_experts/launch.hpp"

namespace tessera::cuda {

using core::SelectAndAlignProblem;

Status run_two_ops(const SelectAndAlignProblem& problem, const Context& context) {
  if (Status s = run_select_experts(problem.selection, context); !s.ok()) return s;
  return run_align_block_size(problem.alignment, context);
}

std::size_t two_ops_workspace_bytes(const SelectAndAlignProblem& problem, const Context& context) {
  return align_block_size_workspace_bytes(problem.alignment, context);
}

Status two_ops_refusal(const SelectAndAlignProblem& problem, const Context& context,
                       bool is_asked_for) {
  return select_experts_refusal(problem.selection, context, is_asked_for);
}

}  // namespace tessera::cuda
