#include "cuda/batched_align_block_size.hpp"

#include <string>

#include "core/errors.hpp"
#include "cuda/batched_align_block_size_kernel.hpp"
#include "cuda/device.hpp"
#include "cuda/launch.hpp"

namespace tessera::cuda {
namespace {

constexpr std::string_view kOp = "batched_align_block_size";

cudaError_t prepare(int device_id) {
  static PreparedDevices devices;
  return prepare_kernel(batched_align_block_size_kernel(), {.dynamic_shared_memory = true},
                        device_id, &devices);
}

Status launch_failed(std::string_view what, const core::BatchedAlignBlockSizeProblem& problem,
                     const BatchedPlan& plan, const Context& context, cudaError_t error) {
  return refuse_launch(kOp, what,
                       std::to_string(plan.num_ctas) + " CTAs to start for " +
                           std::to_string(problem.num_batches) + " batches, max_tokens_per_batch " +
                           std::to_string(problem.max_tokens_per_batch) + ", block_size " +
                           std::to_string(problem.block_size),
                       context, error);
}

}  // namespace

Status batched_align_block_size(const core::BatchedAlignBlockSizeProblem& problem,
                                const Context& context) {
  const int device_id = context.device.device_id;
  const DeviceProperties& device = properties_of(device_id);
  if (problem.num_batches > batched_max_batches(device)) {
    return core::refuse(StatusCode::kUnsupported, kOp, "expert_num_tokens.num_elements",
                        "at most " + std::to_string(batched_max_batches(device)) +
                            " batches, a word of shared memory each, on " +
                            core::to_string(context.device),
                        std::to_string(problem.num_batches));
  }
  const BatchedPlan plan = plan_batched(problem.num_batches, problem.capacity, device);
  const CurrentDevice current(device_id);
  if (current.error() != cudaSuccess) {
    return launch_failed("device", problem, plan, context, current.error());
  }
  if (const cudaError_t error = prepare(device_id)) {
    return launch_failed("kernel", problem, plan, context, error);
  }
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
  const Launch launch{batched_align_block_size_kernel(), plan.num_ctas, kBatchedNumThreads,
                      plan.shared_bytes};
  if (const cudaError_t error = launch_kernel(launch, &args, context)) {
    return launch_failed("launch", problem, plan, context, error);
  }
  return {};
}

Status load_batched_align_block_size_kernel(std::string_view op, int device_id) {
  const cudaError_t error = prepare(device_id);
  if (error == cudaSuccess) return {};
  return core::refuse(StatusCode::kRuntimeError, op, "kernel",
                      "that of batched_align_block_size to load", text_of(error));
}

}  // namespace tessera::cuda
