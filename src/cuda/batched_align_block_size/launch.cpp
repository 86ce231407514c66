#include "cuda/batched_align_block_size/launch.hpp"

#include <string>

#include "core/batched_align_block_size_problem.hpp"
#include "core/errors.hpp"
#include "cuda/batched_align_block_size/kernel.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"

namespace tessera::cuda {
namespace {

using core::BatchedAlignBlockSizeProblem;

constexpr std::string_view kOp = "batched_align_block_size";

Kernel kernel() {
  static PreparedContexts prepared;
  return {.function = batched_align_block_size_kernel(),
          .needs_shared_memory = true,
          .static_shared_bytes = kBatchedStaticSharedBytes,
          .prepared = &prepared};
}

Status refusal(const BatchedAlignBlockSizeProblem& problem, const Context& context, bool) {
  const std::int64_t max_batches = batched_max_batches(properties_of(context.device.device_id));
  if (problem.num_batches <= max_batches) return {};
  return core::refuse(StatusCode::kUnsupported, kOp, "expert_num_tokens.num_elements",
                      "at most " + std::to_string(max_batches) +
                          " batches, a word of shared memory each, on " +
                          core::to_string(context.device),
                      std::to_string(problem.num_batches));
}

Status run(const BatchedAlignBlockSizeProblem& problem, const Context& context) {
  const DeviceProperties& device = properties_of(context.device.device_id);
  const BatchedPlan plan = plan_batched(problem.num_batches, problem.capacity, device);
  BatchedAlignBlockSizeKernelArgs args{};
  args.expert_num_tokens = problem.expert_num_tokens;
  args.num_batches = problem.num_batches;
  args.max_tokens_per_batch = problem.max_tokens_per_batch;
  args.block_size = problem.block_size;
  args.block_division = division_by(problem.block_size);
  args.tail_expert = problem.tail_expert;
  args.filler = problem.filler;
  args.sorted_token_ids = problem.sorted_token_ids;
  args.sorted_token_ids_length = problem.sorted_token_ids_length;
  args.expert_ids = problem.expert_ids;
  args.expert_ids_length = problem.expert_ids_length;
  args.num_tokens_post_pad = problem.num_tokens_post_pad;
  const Launch launch{kernel(), plan.num_ctas, kBatchedNumThreads, plan.shared_bytes};
  return launch_kernel(kOp, launch, &args, context, [&] {
    return std::to_string(plan.num_ctas) + " CTAs to start for " +
           std::to_string(problem.num_batches) + " batches, max_tokens_per_batch " +
           std::to_string(problem.max_tokens_per_batch) + ", block_size " +
           std::to_string(problem.block_size);
  });
}

}  // namespace

std::span<const core::Implementation> batched_align_block_size_implementations() {
  static constexpr core::Implementation kAll[] = {
      core::implementation<BatchedAlignBlockSizeProblem, run, nullptr, refusal>("cuda/batched"),
  };
  return kAll;
}

Status load_batched_align_block_size_kernel(std::string_view op, int device_id,
                                            const CurrentContext& context) {
  const cudaError_t error = prepare_kernel(kernel(), device_id, context);
  if (error == cudaSuccess) return {};
  return core::refuse(StatusCode::kRuntimeError, op, "kernel", "cuda/batched to load",
                      text_of(error));
}

}  // namespace tessera::cuda
