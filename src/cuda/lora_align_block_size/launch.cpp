#include "cuda/lora_align_block_size/launch.hpp"

#include <array>
#include <cstdint>
#include <string>

#include "core/errors.hpp"
#include "core/lora_align_block_size_problem.hpp"
#include "cuda/align_block_size/launch.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"
#include "cuda/lora_align_block_size/kernel.hpp"
#include "cuda/lora_align_block_size/policy.hpp"

namespace tessera::cuda {
namespace {

using core::LoraAlignBlockSizeProblem;

constexpr std::string_view kOp = "lora_align_block_size";

Status refusal(const LoraAlignBlockSizeProblem& problem, const Context& context, bool) {
  const std::int64_t max_experts = max_lora_experts(properties_of(context.device.device_id));
  if (problem.first_row.num_experts <= max_experts) return {};
  return core::refuse(
      StatusCode::kUnsupported, kOp, "num_experts",
      "at most " + std::to_string(max_experts) + " experts on " + core::to_string(context.device),
      std::to_string(problem.first_row.num_experts));
}

Kernel kernel_for(IdWidth width) {
  static std::array<PreparedContexts, kNumIdWidths> prepared;
  return {.function = lora_align_block_size_kernel(width),
          .needs_shared_memory = true,
          .static_shared_bytes = kLoraStaticSharedBytes,
          .prepared = &prepared[static_cast<std::size_t>(width)]};
}

LoraAlignBlockSizeKernelArgs kernel_args(const LoraPlan& plan,
                                         const LoraAlignBlockSizeProblem& problem) {
  LoraAlignBlockSizeKernelArgs args{};
  args.first_row = {problem_args(problem.first_row).base};
  args.top_k_division = division_by(problem.top_k);
  args.token_lora_mapping = problem.token_lora_mapping;
  args.adapter_enabled = problem.adapter_enabled;
  args.has_lora_ids = problem.has_lora_ids;
  args.lora_ids = problem.lora_ids;
  args.num_lora_ids = problem.num_lora_ids;
  args.ctas_per_row = plan.ctas_per_row;
  args.counting_warps = plan.counting_warps;
  args.ids_per_warp = plan.ids_per_warp;
  return args;
}

Status run(const LoraAlignBlockSizeProblem& problem, const Context& context) {
  const core::AlignBlockSizeProblem& row = problem.first_row;
  const LoraPlan plan =
      plan_lora({row.num_ids, row.block_size, row.num_experts, problem.max_loras, false},
                properties_in(context));
  Launch launch{kernel_for(width_of(row.id_dtype)), plan.ctas_per_row * problem.max_loras,
                plan.num_threads, plan.shared_bytes};
  if (plan.ctas_per_row > 1) launch.cluster_size = plan.ctas_per_row;
  LoraAlignBlockSizeKernelArgs args = kernel_args(plan, problem);
  return launch_kernel(kOp, launch, &args, context, [&] {
    return "a launch for " + std::to_string(row.num_ids) + " ids, " +
           std::to_string(row.num_experts) + " experts, block_size " +
           std::to_string(row.block_size) + ", " + std::to_string(problem.max_loras) + " adapters";
  });
}

}  // namespace

std::span<const core::Implementation> lora_align_block_size_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<LoraAlignBlockSizeProblem, run, nullptr, refusal>("cuda/lora"),
  };
  return kAll;
}

Status load_lora_align_block_size_kernels(std::string_view op, int device_id,
                                          const CurrentContext& context) {
  for (int i = 0; i < kNumIdWidths; ++i) {
    const Kernel kernel = kernel_for(static_cast<IdWidth>(i));
    if (const cudaError_t error = prepare_kernel(kernel, device_id, context)) {
      return core::refuse(StatusCode::kRuntimeError, op, "kernel", "cuda/lora to load",
                          text_of(error));
    }
  }
  return {};
}

}  // namespace tessera::cuda
