#include "cuda/select_and_align/launch.hpp"

#include "core/select_and_align_problem.hpp"
#include "cuda/select_and_align/two_ops.hpp"

namespace tessera::cuda {

using core::SelectAndAlignProblem;

std::span<const core::Implementation> select_and_align_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<SelectAndAlignProblem, run_two_ops, two_ops_workspace_bytes,
                           two_ops_refusal>("cuda/two_ops"),
  };
  return kAll;
}

}  // namespace tessera::cuda
