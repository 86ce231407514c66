#include "cuda/select_experts/launch.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string>

#include "core/errors.hpp"
#include "core/select_experts_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {
namespace {

using core::SelectExpertsProblem;

constexpr std::string_view kOp = "select_experts";
constexpr int kWarp = 32;

// With few tokens each has a multiprocessor's schedulers for itself.
constexpr std::int64_t kMaxTokensOfOneWarp = 512;
constexpr int kWarpsPerCta = 4;

Kernel kernel_for(int size, Scoring scoring, bool is_plain) {
  static PreparedContexts prepared[kNumSelectExpertsSizes][kNumScorings][2];
  return {.function = select_experts_kernel(size, scoring, is_plain),
          .needs_shared_memory = true,
          .prepared = &prepared[size][static_cast<int>(scoring)][is_plain ? 1 : 0]};
}

}  // namespace

SelectExpertsKernelArgs select_experts_kernel_args(const SelectExpertsProblem& problem) {
  SelectExpertsKernelArgs args{};
  args.router_logits = problem.router_logits;
  args.correction_bias = problem.correction_bias;
  args.num_valid_tokens = problem.num_valid_tokens;
  args.topk_weights = problem.topk_weights;
  args.topk_ids = problem.topk_ids;
  args.dtype = problem.dtype;
  args.num_tokens = problem.num_tokens;
  args.logits_stride = problem.logits_stride;
  args.num_experts = static_cast<std::int32_t>(problem.num_experts);
  args.top_k = static_cast<std::int32_t>(problem.top_k);
  args.num_expert_group = static_cast<std::int32_t>(problem.num_expert_group);
  args.topk_group = static_cast<std::int32_t>(problem.topk_group);
  args.group_size = static_cast<std::int32_t>(problem.group_size());
  args.lanes_per_group = static_cast<std::int32_t>(
      std::bit_floor(static_cast<std::uint32_t>(std::max(1, kWarp / args.num_expert_group))));
  args.by_group_size = division_by(args.group_size);
  args.scoring = problem.scoring;
  args.renormalize = problem.renormalize;
  args.routed_scaling_factor = problem.routed_scaling_factor;
  return args;
}

SelectExpertsPlan plan_select_experts(const SelectExpertsKernelArgs& args) {
  SelectExpertsPlan plan{};
  const auto* const begin = std::begin(kSelectExpertsInRegisters);
  const auto* const end = std::end(kSelectExpertsInRegisters);
  plan.size = static_cast<int>(std::lower_bound(begin, end, args.num_experts) - begin);
  plan.is_plain = args.correction_bias == nullptr && args.topk_group == args.num_expert_group;
  const bool in_registers = plan.size < kNumSelectExpertsSizes - 1;
  plan.warps_per_cta = in_registers && args.num_tokens > kMaxTokensOfOneWarp ? kWarpsPerCta : 1;
  plan.num_ctas = (args.num_tokens + plan.warps_per_cta - 1) / plan.warps_per_cta;
  plan.shared_bytes = static_cast<std::size_t>(plan.warps_per_cta) *
                      select_experts_layout(args, in_registers).bytes();
  return plan;
}

namespace {

Status refusal(const SelectExpertsProblem& problem, const Context& context, bool) {
  const std::size_t bytes = plan_select_experts(select_experts_kernel_args(problem)).shared_bytes;
  const std::size_t most = properties_of(context.device.device_id).max_shared_bytes;
  if (bytes <= most) return {};
  return core::refuse(
      StatusCode::kUnsupported, kOp, "router_logits.shape[1]",
      "experts and slots that fit into " + std::to_string(most) + " bytes of shared memory",
      std::to_string(problem.num_experts) + " experts with top_k " + std::to_string(problem.top_k) +
          ", which need " + std::to_string(bytes));
}

Status run(const SelectExpertsProblem& problem, const Context& context) {
  SelectExpertsKernelArgs args = select_experts_kernel_args(problem);
  const SelectExpertsPlan plan = plan_select_experts(args);
  if (plan.num_ctas == 0) return {};
  const Launch launch{kernel_for(plan.size, args.scoring, plan.is_plain),
                      static_cast<int>(plan.num_ctas), plan.warps_per_cta * kWarp,
                      plan.shared_bytes};
  return launch_kernel(kOp, launch, &args, context, [&] {
    return std::to_string(plan.num_ctas) + " CTAs to start for " +
           std::to_string(problem.num_tokens) + " tokens of " +
           std::to_string(problem.num_experts) + " experts";
  });
}

}  // namespace

std::span<const core::Implementation> select_experts_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<SelectExpertsProblem, run, nullptr, refusal>("cuda/warps"),
  };
  return kAll;
}

Status load_select_experts_kernels(std::string_view op, int device_id,
                                   const CurrentContext& context) {
  for (int size = 0; size < kNumSelectExpertsSizes; ++size) {
    for (int scoring = 0; scoring < kNumScorings; ++scoring) {
      for (const bool is_plain : {false, true}) {
        const Kernel kernel = kernel_for(size, static_cast<Scoring>(scoring), is_plain);
        if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
          return core::refuse(StatusCode::kRuntimeError, op, "kernel", "cuda/warps to load",
                              text_of(error));
        }
      }
    }
  }
  return {};
}

}  // namespace tessera::cuda
