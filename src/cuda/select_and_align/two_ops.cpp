#include "cuda/select_and_align/two_ops.hpp"

#include "core/implementation.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/select_experts/launch.hpp"

namespace tessera::cuda {
namespace {

using core::Implementation;
using core::SelectAndAlignProblem;

/// The first implementation of select_experts that runs the problem. If none does, null, and the
/// reason of the last.
const Implementation* find_selection(const SelectAndAlignProblem& problem, const Context& context,
                                     Status* why_not) {
  for (const Implementation& candidate : select_experts_implementations()) {
    if (candidate.refusal == nullptr) return &candidate;
    *why_not = candidate.refusal(&problem.selection, context, false);
    if (why_not->ok()) return &candidate;
  }
  return nullptr;
}

}  // namespace

Status run_two_ops(const SelectAndAlignProblem& problem, const Context& context) {
  Status why_not;
  const Implementation* const selection = find_selection(problem, context, &why_not);
  if (selection == nullptr) return why_not;
  if (Status s = selection->run(&problem.selection, context); !s.ok()) return s;
  return run_align_block_size(problem.alignment, context);
}

std::size_t two_ops_workspace_bytes(const SelectAndAlignProblem& problem, const Context& context) {
  return align_block_size_workspace_bytes(problem.alignment, context);
}

Status two_ops_refusal(const SelectAndAlignProblem& problem, const Context& context, bool) {
  Status why_not;
  return find_selection(problem, context, &why_not) == nullptr ? why_not : Status();
}

}  // namespace tessera::cuda
