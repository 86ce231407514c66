#include "cuda/select_and_align/launch.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>

#include "core/errors.hpp"
#include "core/select_and_align_problem.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/align_block_size/layout.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/select_and_align/kernel.hpp"
#include "cuda/select_and_align/policy.hpp"
#include "cuda/select_and_align/two_ops.hpp"

namespace tessera::cuda {
namespace {

using core::SelectAndAlignProblem;

constexpr std::string_view kOp = "select_and_align";

struct StrategyKernel {
  const char* name;
  const void* (*find)(const SelectAndAlignInstance& instance);
  bool is_cluster;
};

constexpr std::array<StrategyKernel, kNumSelectAndAlignStrategies> kStrategyKernels{{
    {"cuda/one_cta", select_and_align_one_cta_kernel, false},
    {"cuda/cluster", select_and_align_cluster_kernel, true},
}};

const StrategyKernel& strategy_kernel(SelectAndAlignStrategy strategy) {
  return kStrategyKernels[static_cast<std::size_t>(strategy)];
}

Kernel kernel_of(SelectAndAlignStrategy strategy, const SelectAndAlignInstance& instance) {
  static PreparedContexts prepared[kNumSelectAndAlignStrategies][kNumSelectAndAlignSizes]
                                  [kNumScorings][2];
  const StrategyKernel& kernel = strategy_kernel(strategy);
  auto& of_size = prepared[static_cast<int>(strategy)][instance.size];
  return {.function = kernel.find(instance),
          .needs_shared_memory = true,
          .static_shared_bytes = kStaticSharedBytes,
          .needs_large_clusters = kernel.is_cluster,
          .prepared = &of_size[static_cast<int>(instance.scoring)][instance.is_plain ? 1 : 0]};
}

SelectAndAlignKernelArgs kernel_args(const SelectAndAlignProblem& problem,
                                     const SelectExpertsKernelArgs& selection,
                                     const SelectAndAlignPlan& plan) {
  const AlignBlockSizeExtendedArgs alignment = problem_args(problem.alignment);
  SelectAndAlignKernelArgs args{.selection = selection,
                                .blocks = {.base = alignment.base,
                                           .reciprocal_of_experts = alignment.reciprocal_of_experts,
                                           .statistics = alignment.statistics},
                                .tokens_per_cta = plan.tokens_per_cta,
                                .blocks_memory = static_cast<std::uint32_t>(plan.blocks_memory)};
  args.blocks.base.ids_per_thread = plan.ids_per_thread;
  args.blocks.base.ids_per_cta = plan.tokens_per_cta * selection.top_k;
  return args;
}

/// One launch for all of the op.
template <SelectAndAlignStrategy kStrategy>
struct OneLaunch {
  static Status run(const SelectAndAlignProblem& problem, const Context& context) {
    const SelectExpertsKernelArgs selection = select_experts_kernel_args(problem.selection);
    const SelectAndAlignPlan plan = plan_select_and_align(kStrategy, selection);
    SelectAndAlignKernelArgs args = kernel_args(problem, selection, plan);
    Launch launch{kernel_of(kStrategy, plan.instance), plan.num_ctas, plan.num_threads,
                  plan.shared_bytes};
    if (strategy_kernel(kStrategy).is_cluster) launch.cluster_size = plan.num_ctas;
    return launch_kernel(kOp, launch, &args, context, [&] {
      return std::string(strategy_kernel(kStrategy).name) + " to start for " +
             std::to_string(selection.num_tokens) + " tokens of " +
             std::to_string(selection.num_experts) + " experts (" + to_string(plan) + ")";
    });
  }

  /// Enough for the two ops, too: a call may be on a stream of fewer multiprocessors than the size
  /// query knew.
  static std::size_t workspace_bytes(const SelectAndAlignProblem& problem, const Context& context) {
    return two_ops_workspace_bytes(problem, context);
  }

  static Status refusal(const SelectAndAlignProblem& problem, const Context& context, bool forced) {
    static constexpr Status::Error kNotPreferred{StatusCode::kUnsupported,
                                                 "the policy picks another for this shape"};
    if (!forced && !is_preferred(kStrategy, problem)) return Status(&kNotPreferred);
    const SelectExpertsKernelArgs selection = select_experts_kernel_args(problem.selection);
    const char* reason =
        limitation(kStrategy, problem, selection, properties_of(context.device.device_id));
    if (reason == nullptr && strategy_kernel(kStrategy).is_cluster) {
      reason = limitation(kStrategy, problem, selection, properties_in(context));
    }
    if (reason == nullptr) return {};
    return forced ? Status(StatusCode::kUnsupported, reason) : Status(&kNotPreferred);
  }

  static std::string plan(const SelectAndAlignProblem& problem, const Context&) {
    return to_string(
        plan_select_and_align(kStrategy, select_experts_kernel_args(problem.selection)));
  }

  static constexpr core::Implementation descriptor() {
    return core::implementation<SelectAndAlignProblem, run, workspace_bytes, refusal, plan>(
        kStrategyKernels[static_cast<std::size_t>(kStrategy)].name);
  }
};

}  // namespace

std::span<const core::Implementation> select_and_align_implementations() {
  static constexpr core::Implementation kAll[] = {
      OneLaunch<SelectAndAlignStrategy::kOneCta>::descriptor(),
      OneLaunch<SelectAndAlignStrategy::kCluster>::descriptor(),
      core::implementation<SelectAndAlignProblem, run_two_ops, two_ops_workspace_bytes,
                           two_ops_refusal>("cuda/two_ops"),
  };
  return kAll;
}

Status load_select_and_align_kernels(std::string_view op, int device_id,
                                     const CurrentContext& context) {
  const int capability = properties_of(device_id).code_capability;
  for (int i = 0; i < kNumSelectAndAlignStrategies; ++i) {
    const auto strategy = static_cast<SelectAndAlignStrategy>(i);
    if (strategy_kernel(strategy).is_cluster && capability < 90) continue;
    for (int size = 0; size < kNumSelectAndAlignSizes; ++size) {
      for (int scoring = 0; scoring < kNumScorings; ++scoring) {
        for (const bool is_plain : {false, true}) {
          const Kernel kernel =
              kernel_of(strategy, {size, static_cast<Scoring>(scoring), is_plain});
          if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
            return core::refuse(StatusCode::kRuntimeError, op, "kernel",
                                std::string(strategy_kernel(strategy).name) + " to load",
                                text_of(error));
          }
        }
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
