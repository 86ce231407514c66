// The two-kernel algorithm that inference engines use, written from its description: one CTA counts
// the ids and lays out the groups; then every id takes its slot by an atomic on its group's cursor.
// The order inside a group is therefore the order of the atomics.
#pragma once

#include "block_plan.cuh"

namespace tessera::bench {

/// CTA 0 counts and plans; the others fill sorted_token_ids.
template <typename Id>
__global__ void __launch_bounds__(kPlanThreads)
    textbook_plan_kernel(Problem<Id> problem, std::int32_t* cursors) {
  const std::int32_t thread = static_cast<std::int32_t>(threadIdx.x);
  if (blockIdx.x > 0) {
    const std::int32_t stride = static_cast<std::int32_t>(gridDim.x - 1) * kPlanThreads;
    for (std::int32_t i = static_cast<std::int32_t>(blockIdx.x - 1) * kPlanThreads + thread;
         i < problem.capacity; i += stride) {
      problem.sorted_token_ids[i] = problem.num_ids;
    }
    return;
  }
  extern __shared__ std::int32_t counts[];
  __shared__ PlanScan::TempStorage scan_storage;
  for (std::int32_t i = thread; i < problem.num_experts; i += kPlanThreads) counts[i] = 0;
  __syncthreads();
  for (std::int32_t i = thread; i < problem.num_ids; i += kPlanThreads) {
    const Id id = problem.topk_ids[i];
    if (id >= 0 && id < problem.num_experts) atomicAdd(&counts[id], 1);
  }
  __syncthreads();
  plan_blocks(
      problem, cursors, [](std::int32_t expert) { return counts[expert]; }, scan_storage);
}

template <typename Id>
__global__ void textbook_place_kernel(Problem<Id> problem, std::int32_t* cursors) {
  const std::int32_t stride = static_cast<std::int32_t>(gridDim.x * blockDim.x);
  for (std::int32_t i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
       i < problem.num_ids; i += stride) {
    const Id id = problem.topk_ids[i];
    if (id >= 0 && id < problem.num_experts) {
      problem.sorted_token_ids[atomicAdd(&cursors[id], 1)] = i;
    }
  }
}

/// `workspace` holds num_experts int32.
template <typename Id>
void textbook(const Problem<Id>& problem, std::int32_t* workspace, cudaStream_t stream) {
  launch("textbook_plan_kernel", textbook_plan_kernel<Id>,
         1 + grid_for(problem.capacity, kPlanThreads), kPlanThreads,
         problem.num_experts * sizeof(std::int32_t), stream, false, problem, workspace);
  launch("textbook_place_kernel", textbook_place_kernel<Id>, grid_for(problem.num_ids, 256), 256, 0,
         stream, false, problem, workspace);
}

}  // namespace tessera::bench
