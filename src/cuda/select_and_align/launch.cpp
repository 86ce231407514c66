#include "cuda/select_and_align/launch.hpp"

#include <cstddef>
#include <string>

#include "core/errors.hpp"
#include "core/select_and_align_problem.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/select_and_align/kernel.hpp"
#include "cuda/select_and_align/policy.hpp"
#include "cuda/select_and_align/two_ops.hpp"

namespace tessera::cuda {
namespace {

using core::SelectAndAlignProblem;

constexpr const char* kOneCta = "cuda/one_cta";

Kernel kernel_of(const SelectAndAlignInstance& instance) {
  static PreparedContexts prepared[kNumSelectAndAlignSizes][kNumScorings][2];
  return {
      .function = select_and_align_kernel(instance),
      .needs_shared_memory = true,
      .static_shared_bytes = sizeof(SelectAndAlignPairs),
      .prepared =
          &prepared[instance.size][static_cast<int>(instance.scoring)][instance.is_plain ? 1 : 0]};
}

Status run_one_cta(const SelectAndAlignProblem& problem, const Context& context) {
  SelectAndAlignKernelArgs args{.selection = select_experts_kernel_args(problem.selection),
                                .blocks = {problem_args(problem.alignment).base}};
  const SelectAndAlignPlan plan = plan_select_and_align(problem);
  const Launch launch{kernel_of(plan.instance), 1, kSelectAndAlignThreads, plan.shared_bytes};
  return launch_kernel("select_and_align", launch, &args, context, [&] {
    return std::string(kOneCta) + " to start for " + std::to_string(args.selection.num_tokens) +
           " tokens of " + std::to_string(args.selection.num_experts) + " experts";
  });
}

Status one_cta_refusal(const SelectAndAlignProblem& problem, const Context&, bool forced) {
  static constexpr Status::Error kNotPreferred{StatusCode::kUnsupported,
                                               "the policy picks another for this shape"};
  const char* const reason = one_cta_limitation(problem);
  if (reason == nullptr && (forced || prefers_one_cta(problem))) return {};
  return forced ? Status(StatusCode::kUnsupported, reason) : Status(&kNotPreferred);
}

}  // namespace

std::span<const core::Implementation> select_and_align_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<SelectAndAlignProblem, run_one_cta, nullptr, one_cta_refusal>(kOneCta),
      core::implementation<SelectAndAlignProblem, run_two_ops, two_ops_workspace_bytes,
                           two_ops_refusal>("cuda/two_ops"),
  };
  return kAll;
}

Status load_select_and_align_kernels(std::string_view op, int device_id,
                                     const CurrentContext& context) {
  for (int size = 0; size < kNumSelectAndAlignSizes; ++size) {
    for (int scoring = 0; scoring < kNumScorings; ++scoring) {
      for (const bool is_plain : {false, true}) {
        const Kernel kernel = kernel_of({size, static_cast<Scoring>(scoring), is_plain});
        if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
          return core::refuse(StatusCode::kRuntimeError, op, "kernel",
                              std::string(kOneCta) + " to load", text_of(error));
        }
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
