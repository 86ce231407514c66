#include "cuda/select_experts/launch.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "core/errors.hpp"
#include "core/select_experts_problem.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/select_experts/kernel.hpp"

namespace tessera::cuda {
namespace {

using core::SelectExpertsProblem;

constexpr std::string_view kOp = "select_experts";
constexpr std::uint32_t kWarp = 32;

// With few tokens each has a multiprocessor's schedulers for itself.
constexpr std::int64_t kMaxTokensOfOneWarp = 512;
constexpr int kWarpsPerCta = 4;

// Where groups are removed, a CTA per token is faster than a warp up to here.
constexpr std::int64_t kMaxTokensInParts = 256;

/// Tokens up to which a call that is a part of another op is faster if it may start early.
constexpr std::int64_t kMaxTokensToStartEarly = 256;

Kernel warps_kernel_for(int size, Scoring scoring, bool is_plain) {
  static PreparedContexts prepared[kNumSelectExpertsSizes][kNumScorings][2];
  return {.function = select_experts_kernel(size, scoring, is_plain),
          .needs_shared_memory = true,
          .prepared = &prepared[size][static_cast<int>(scoring)][is_plain ? 1 : 0]};
}

Kernel parts_kernel_for(Scoring scoring, bool has_bias) {
  static PreparedContexts prepared[kNumScorings][2];
  return {.function = select_experts_parts_kernel(scoring, has_bias),
          .needs_shared_memory = false,
          .prepared = &prepared[static_cast<int>(scoring)][has_bias ? 1 : 0]};
}

std::string launch_text(const SelectExpertsProblem& problem, std::int64_t num_ctas) {
  return std::to_string(num_ctas) + " CTAs to start for " + std::to_string(problem.num_tokens) +
         " tokens of " + std::to_string(problem.num_experts) + " experts";
}

}  // namespace

SelectExpertsKernelArgs select_experts_kernel_args(const SelectExpertsProblem& problem) {
  const auto num_groups = static_cast<std::uint32_t>(problem.num_expert_group);
  const auto group_size = static_cast<std::int32_t>(problem.group_size());
  return {.router_logits = problem.router_logits,
          .correction_bias = problem.correction_bias,
          .num_valid_tokens = problem.num_valid_tokens,
          .topk_weights = problem.topk_weights,
          .topk_ids = problem.topk_ids,
          .dtype = problem.dtype,
          .num_tokens = problem.num_tokens,
          .logits_stride = problem.logits_stride,
          .num_experts = static_cast<std::int32_t>(problem.num_experts),
          .top_k = static_cast<std::int32_t>(problem.top_k),
          .num_expert_group = static_cast<std::int32_t>(problem.num_expert_group),
          .topk_group = static_cast<std::int32_t>(problem.topk_group),
          .group_size = group_size,
          .lanes_per_group =
              static_cast<std::int32_t>(std::bit_floor(std::max(1U, kWarp / num_groups))),
          .by_group_size = division_by(group_size),
          .scoring = problem.scoring,
          .renormalize = problem.renormalize,
          .routed_scaling_factor = problem.routed_scaling_factor,
          .layout = select_experts_layout(problem)};
}

SelectExpertsPlan plan_select_experts(const SelectExpertsKernelArgs& args) {
  SelectExpertsPlan plan{};
  const auto* const begin = std::begin(kSelectExpertsInRegisters);
  const auto* const end = std::end(kSelectExpertsInRegisters);
  plan.size = static_cast<int>(std::lower_bound(begin, end, args.num_experts) - begin);
  plan.is_plain = args.correction_bias == nullptr && args.topk_group == args.num_expert_group;
  const bool in_registers = select_experts_in_registers(args.num_experts);
  plan.warps_per_cta = in_registers && args.num_tokens > kMaxTokensOfOneWarp ? kWarpsPerCta : 1;
  plan.num_ctas = (args.num_tokens + plan.warps_per_cta - 1) / plan.warps_per_cta;
  plan.shared_bytes = static_cast<std::size_t>(plan.warps_per_cta) * args.layout.bytes();
  return plan;
}

SelectExpertsPartsArgs select_experts_parts_args(const SelectExpertsProblem& problem) {
  const bool removes_groups = problem.topk_group < problem.num_expert_group;
  const std::int64_t part_size = removes_groups ? problem.group_size() : kWarp;
  const auto num_parts =
      static_cast<std::int32_t>((problem.num_experts + part_size - 1) / part_size);
  const auto num_listed = static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(problem.top_k, kSelectExpertsMinList, kWarp));
  return {
      .of_warp = select_experts_kernel_args(problem),
      .num_parts = num_parts,
      .part_size = static_cast<std::int32_t>(part_size),
      .num_that_stay = removes_groups ? static_cast<std::int32_t>(problem.topk_group) : num_parts,
      .list_shift = static_cast<std::int32_t>(std::bit_width(num_listed - 1))};
}

namespace {

Status warps_refusal(const SelectExpertsProblem& problem, const Context& context, bool) {
  const std::size_t bytes = plan_select_experts(select_experts_kernel_args(problem)).shared_bytes;
  const std::size_t most = properties_of(context.device.device_id).max_shared_bytes;
  if (bytes <= most) return {};
  return core::refuse(
      StatusCode::kUnsupported, kOp, "router_logits.shape[1]",
      "experts and slots that fit into " + std::to_string(most) + " bytes of shared memory",
      std::to_string(problem.num_experts) + " experts with top_k " + std::to_string(problem.top_k) +
          ", which need " + std::to_string(bytes));
}

template <bool kMayStartEarly>
Status run_warps(const SelectExpertsProblem& problem, const Context& context) {
  SelectExpertsKernelArgs args = select_experts_kernel_args(problem);
  const SelectExpertsPlan plan = plan_select_experts(args);
  if (plan.num_ctas == 0) return {};
  Launch launch{warps_kernel_for(plan.size, args.scoring, plan.is_plain),
                static_cast<int>(plan.num_ctas), plan.warps_per_cta * static_cast<int>(kWarp),
                plan.shared_bytes};
  launch.may_start_early = kMayStartEarly;
  return launch_kernel(kOp, launch, &args, context,
                       [&] { return launch_text(problem, plan.num_ctas); });
}

Status parts_refusal(const SelectExpertsProblem& problem, const Context&, bool is_asked_for) {
  static constexpr Status::Error kNotPreferred{StatusCode::kUnsupported,
                                               "the policy picks another for this shape"};
  const bool removes_groups = problem.topk_group < problem.num_expert_group;
  if (!is_asked_for && !(removes_groups && problem.num_tokens <= kMaxTokensInParts)) {
    return Status(&kNotPreferred);
  }
  const SelectExpertsPartsArgs args = select_experts_parts_args(problem);
  if (args.num_parts <= kSelectExpertsMaxParts && args.part_size <= std::int32_t{kWarp} &&
      problem.top_k <= kWarp) {
    return {};
  }
  if (!is_asked_for) return Status(&kNotPreferred);
  return core::refuse(StatusCode::kUnsupported, kOp, "router_logits.shape[1]",
                      "at most " + std::to_string(kSelectExpertsMaxParts) + " parts of at most " +
                          std::to_string(kWarp) + " experts, and top_k <= " + std::to_string(kWarp),
                      std::to_string(args.num_parts) + " of " + std::to_string(args.part_size) +
                          ", top_k " + std::to_string(problem.top_k));
}

template <bool kMayStartEarly>
Status run_parts(const SelectExpertsProblem& problem, const Context& context) {
  if (problem.num_tokens == 0) return {};
  SelectExpertsPartsArgs args = select_experts_parts_args(problem);
  Launch launch{parts_kernel_for(problem.scoring, problem.correction_bias != nullptr),
                static_cast<int>(problem.num_tokens), args.num_parts * static_cast<int>(kWarp), 0};
  launch.may_start_early = kMayStartEarly;
  return launch_kernel(kOp, launch, &args, context,
                       [&] { return launch_text(problem, problem.num_tokens); });
}

}  // namespace

Status run_select_experts(const SelectExpertsProblem& problem, const Context& context) {
  const bool has_parts = parts_refusal(problem, context, false).ok();
  if (problem.num_tokens <= kMaxTokensToStartEarly) {
    return has_parts ? run_parts<true>(problem, context) : run_warps<true>(problem, context);
  }
  return has_parts ? run_parts<false>(problem, context) : run_warps<false>(problem, context);
}

Status select_experts_refusal(const SelectExpertsProblem& problem, const Context& context,
                              bool is_asked_for) {
  if (parts_refusal(problem, context, false).ok()) return {};
  return warps_refusal(problem, context, is_asked_for);
}

std::span<const core::Implementation> select_experts_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<SelectExpertsProblem, run_parts<false>, nullptr, parts_refusal>(
          "cuda/parts"),
      core::implementation<SelectExpertsProblem, run_warps<false>, nullptr, warps_refusal>(
          "cuda/warps"),
  };
  return kAll;
}

Status load_select_experts_kernels(std::string_view op, int device_id,
                                   const CurrentContext& context) {
  std::vector<Kernel> kernels;
  for (int scoring = 0; scoring < kNumScorings; ++scoring) {
    for (const bool flag : {false, true}) {
      kernels.push_back(parts_kernel_for(static_cast<Scoring>(scoring), flag));
      for (int size = 0; size < kNumSelectExpertsSizes; ++size) {
        kernels.push_back(warps_kernel_for(size, static_cast<Scoring>(scoring), flag));
      }
    }
  }
  for (const Kernel& kernel : kernels) {
    if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
      return core::refuse(StatusCode::kRuntimeError, op, "kernel",
                          "the kernels of select_experts to load", text_of(error));
    }
  }
  return {};
}

}  // namespace tessera::cuda
